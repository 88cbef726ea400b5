package fakecloud_test

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"math"
	"mime/multipart"
	"net/http"
	"strings"
	"testing"

	"headrace/providers/fakecloud"
)

func TestEmbeddings(t *testing.T) {
	h := start(t, fakecloud.HostConfig{})
	var floats struct {
		Data []struct {
			Index     int
			Embedding []float64
		}
		Usage map[string]any
	}
	var coded struct{ Data []struct{ Embedding []byte } }
	ask(t, h, "/v1/embeddings", `{"input":["a","b 🦊"],"dimensions":48}`, &floats)
	ask(t, h, "/v1/embeddings", `{"input":["a","b 🦊"],"dimensions":48,"encoding_format":"base64"}`, &coded)
	for i, in := range []string{"a", "b 🦊"} {
		want := fakecloud.Vector(model, in, 48)
		for k := range 48 {
			if x := math.Float32frombits(binary.LittleEndian.Uint32(coded.Data[i].Embedding[4*k:])); x != want[k] || math.Abs(floats.Data[i].Embedding[k]-float64(x)) > 1e-6 {
				t.Fatalf("input %d, element %d: %v and %v, want %v", i, k, x, floats.Data[i].Embedding[k], want[k])
			}
		}
	}
	if floats.Usage["prompt_tokens"] != 3.0 {
		t.Errorf("usage %v", floats.Usage)
	}
}

func TestRerankScoreModerations(t *testing.T) {
	h := start(t, fakecloud.HostConfig{})
	var r struct {
		Results []struct {
			Index    int
			Document struct{ Text string }
			Score    float64 `json:"relevance_score"`
		}
	}
	ask(t, h, "/v1/rerank", `{"query":"mill race","documents":["a bird","the mill has a race","a race"],"top_n":2}`, &r)
	if len(r.Results) != 2 || r.Results[0].Score < r.Results[1].Score || r.Results[0].Document.Text == "" {
		t.Errorf("rerank %+v", r)
	}
	var s struct {
		Data []struct {
			Index int
			Score float64
		}
	}
	ask(t, h, "/v1/score", `{"text_1":"a","text_2":["b","c"]}`, &s)
	if len(s.Data) != 2 || s.Data[1].Index != 1 || s.Data[0].Score == s.Data[1].Score {
		t.Errorf("score %+v", s)
	}
	if status, _, _ := do(t, h, http.MethodPost, "/v1/score", `{"text_1":["a","b"],"text_2":["b","c","d"]}`); status != 400 {
		t.Errorf("score of 2 and 3: status %d", status)
	}
	var m struct{ Results []struct{ Flagged bool } }
	ask(t, h, "/v1/moderations", `{"input":["peace","Violence"]}`, &m)
	if len(m.Results) != 2 || m.Results[0].Flagged || !m.Results[1].Flagged {
		t.Errorf("moderations %+v", m)
	}
}

func TestMedia(t *testing.T) {
	h := start(t, fakecloud.HostConfig{})
	var img struct {
		Data []struct {
			PNG []byte `json:"b64_json"`
		}
	}
	ask(t, h, "/v1/images/generations", `{"prompt":"weir","n":2}`, &img)
	if len(img.Data) != 2 || !bytes.Equal(img.Data[0].PNG, fakecloud.Picture(model, "weir")) || !bytes.HasPrefix(img.Data[1].PNG, []byte("\x89PNG")) {
		t.Errorf("images: %d", len(img.Data))
	}
	_, b, head := do(t, h, http.MethodPost, "/v1/audio/speech", `{"input":"listen","voice":"alloy"}`)
	if !bytes.Equal(b, fakecloud.Speech(model, "listen")) || head.Get("Content-Type") != "audio/mpeg" {
		t.Errorf("speech: %d bytes, %v", len(b), head)
	}
	var form bytes.Buffer
	w := multipart.NewWriter(&form)
	file := bytes.Repeat([]byte{0, 1, 2, 255}, 1<<18)
	fw, err := w.CreateFormFile("file", "talk.wav")
	if err == nil {
		_, err = fw.Write(file)
	}
	if err == nil {
		err = w.WriteField("model", model)
	}
	if err == nil {
		err = w.Close()
	}
	if err != nil {
		t.Fatal(err)
	}
	status, b, _ := do(t, h, http.MethodPost, "/v1/audio/transcriptions", form.String(), "Content-Type", w.FormDataContentType())
	sum := sha256.Sum256(file)
	var a struct {
		Text  string
		Bytes int
	}
	if err := json.Unmarshal(b, &a); err != nil || status != 200 || a.Bytes != len(file) || !strings.Contains(a.Text, hex.EncodeToString(sum[:])) {
		t.Errorf("transcription: %d %s", status, b)
	}
	all := sha256.Sum256(form.Bytes())
	if r := h.Requests(); r[len(r)-1].BodyHash != hex.EncodeToString(all[:]) || r[len(r)-1].BodyBytes != int64(form.Len()) {
		t.Error("the whole upload was not recorded as it was sent")
	}
	if status, _, _ := do(t, h, http.MethodPost, "/v1/audio/transcriptions", "{}"); status != 400 {
		t.Errorf("no form: status %d", status)
	}
}

func TestEcho(t *testing.T) {
	h := start(t, fakecloud.HostConfig{})
	for _, tc := range []struct{ method, path, raw, query string }{
		{"POST", "/v1/echo/any/thing", "/v1/echo/any/thing", "a=1&b=%20"},
		{"DELETE", "/v1/files/file%2Fabc", "/v1/files/file%2Fabc", ""},
		{"GET", "/v1/files", "/v1/files", "limit=2"},
		{"PUT", "/v1/files/x/content", "/v1/files/x/content", ""},
	} {
		url := tc.path
		if tc.query != "" {
			url += "?" + tc.query
		}
		_, b, _ := do(t, h, tc.method, url, "body", "X-Mine", "yes")
		var e fakecloud.Echo
		if err := json.Unmarshal(b, &e); err != nil {
			t.Fatalf("%v in %s", err, b)
		}
		sum := sha256.Sum256([]byte("body"))
		if e.Method != tc.method || e.RawPath != tc.raw || e.Query != tc.query || e.BodyBytes != 4 || e.BodyHash != hex.EncodeToString(sum[:]) || e.Headers.Get("X-Mine") != "yes" {
			t.Errorf("%s %s: %+v", tc.method, url, e)
		}
	}
}
