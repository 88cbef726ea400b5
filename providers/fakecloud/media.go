package fakecloud

import (
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"image"
	"image/color"
	"image/png"
	"io"
	"mime"
	"mime/multipart"
	"net/http"
	"time"
)

// pictureSize is the width and height of Picture, in pixels.
const pictureSize = 8

// Picture is the PNG that model paints of prompt.
func Picture(model, prompt string) []byte {
	o := newOracle(model, "picture of "+prompt)
	img := image.NewRGBA(image.Rect(0, 0, pictureSize, pictureSize))
	for i := range pictureSize * pictureSize {
		c := o.number(i)
		img.SetRGBA(i%pictureSize, i/pictureSize, color.RGBA{R: uint8(c), G: uint8(c >> 8), B: uint8(c >> 16), A: 255})
	}
	var b bytes.Buffer
	if err := png.Encode(&b, img); err != nil {
		panic("BUG: " + err.Error())
	}
	return b.Bytes()
}

func (x *exchange) images() {
	var q struct {
		Model  string `json:"model"`
		Prompt string `json:"prompt"`
		N      *int   `json:"n"`
	}
	if !x.decode(&q) {
		return
	}
	p := x.model(&q.Model)
	if p == nil {
		p = checkLimits(nil, q.N, false, nil)
	}
	if p != nil {
		x.refuse(p)
		return
	}
	var data []map[string]string
	for i := range choices(q.N) {
		data = append(data, map[string]string{"b64_json": base64.StdEncoding.EncodeToString(Picture(q.Model, Choice(q.Prompt, i)))})
	}
	x.json(map[string]any{"created": time.Now().Unix(), "data": data})
}

// bytesPerSecond is how much of an upload counts for a second of sound: 16 kHz, 16 bit, mono.
const bytesPerSecond = 32000

// transcribe reads the form as it comes, so that its size has no limit. The answer tells what arrived.
func (x *exchange) transcribe() {
	form, p := x.readForm()
	if p == nil {
		p = x.model(&form.model)
	}
	if p == nil && !form.hasFile {
		p = invalid("file", "file: Field required")
	}
	if p != nil {
		x.refuse(p)
		return
	}
	text := fmt.Sprintf("%s: %d bytes, sha256 %s", form.name, form.size, hex.EncodeToString(form.sum))
	if form.format == "text" {
		x.answer(http.StatusOK, "text/plain; charset=utf-8", []byte(text))
		return
	}
	x.json(map[string]any{
		"text": text, "bytes": form.size, "sha256": hex.EncodeToString(form.sum),
		"usage": map[string]any{"type": "duration", "seconds": (form.size + bytesPerSecond - 1) / bytesPerSecond},
	})
}

// upload is what a transcription form held.
type upload struct {
	model, format string
	name          string // of the file
	size          int64
	sum           []byte
	hasFile       bool
}

func (x *exchange) readForm() (form upload, p *problem) {
	kind, parameters, err := mime.ParseMediaType(x.r.Header.Get("Content-Type"))
	if err != nil || kind != "multipart/form-data" || parameters["boundary"] == "" {
		return form, invalid("", "expected a multipart/form-data body")
	}
	whole := sha256.New()
	body := &counter{r: io.TeeReader(x.reader(), whole)}
	r := multipart.NewReader(body, parameters["boundary"])
	for {
		part, err := r.NextRawPart()
		if errors.Is(err, io.EOF) {
			break
		}
		if err == nil {
			err = form.take(part)
		}
		if err != nil {
			if x.ctx.Err() != nil {
				panic(http.ErrAbortHandler) // the client left before it had said all
			}
			return form, invalid("", "There was an error parsing the body: %v", err)
		}
	}
	_, _ = io.Copy(io.Discard, body) // an epilogue
	if x.body == nil {
		x.record(nil, body.n, whole.Sum(nil))
	}
	return form, nil
}

const maxFormValue = 64 << 10

func (u *upload) take(part *multipart.Part) error {
	if part.FormName() == "file" {
		sum := sha256.New()
		n, err := io.Copy(sum, part)
		u.name, u.size, u.sum, u.hasFile = part.FileName(), n, sum.Sum(nil), true
		return err
	}
	value, err := io.ReadAll(io.LimitReader(part, maxFormValue))
	switch part.FormName() {
	case "model":
		u.model = string(value)
	case "response_format":
		u.format = string(value)
	}
	return err
}

// counter counts what is read through it.
type counter struct {
	r io.Reader
	n int64
}

func (c *counter) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	c.n += int64(n)
	return n, err
}

// speechPart is how much of Speech goes into one write.
const speechPart = 4096

func (x *exchange) speech() {
	var q struct {
		Model  string `json:"model"`
		Input  string `json:"input"`
		Format string `json:"response_format"`
	}
	if !x.decode(&q) {
		return
	}
	p := x.model(&q.Model)
	if p == nil && q.Input == "" {
		p = invalid("input", "input: nothing to say")
	}
	if p != nil {
		x.refuse(p)
		return
	}
	kind := map[string]string{"wav": "audio/wav", "opus": "audio/ogg", "flac": "audio/flac", "aac": "audio/aac", "pcm": "audio/pcm"}[q.Format]
	if kind == "" {
		kind = "audio/mpeg"
	}
	if x.out.head(http.StatusOK, -1, x.fields(kind)) != nil {
		return
	}
	for rest := Speech(q.Model, q.Input); len(rest) > 0; {
		n := min(len(rest), speechPart)
		if x.shape.push(rest[:n]) != nil {
			return
		}
		rest = rest[n:]
	}
	if x.shape.flush() == nil {
		_ = x.out.end()
	}
}
