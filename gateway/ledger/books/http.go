package books

import (
	"encoding/json"
	"errors"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"
)

// lately is what is told of where nobody says since when.
const lately = 24 * time.Hour

// Handler serves the ledger below /admin/v1/spend: the report, what it is made of (period), and single requests (requests/ID). list may
// be nil.
func (b *Books) Handler(listPrice *ListPrice) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /admin/v1/spend", func(w http.ResponseWriter, r *http.Request) {
		by, err := ParseDims(r.URL.Query()["by"])
		if err != nil {
			refuse(w, http.StatusBadRequest, "invalid_parameter", "by: "+err.Error()+".")
			return
		}
		if p, ok := b.asked(w, r); ok {
			reply(w, http.StatusOK, p.Report(by, listPrice))
		}
	})
	mux.HandleFunc("GET /admin/v1/spend/period", func(w http.ResponseWriter, r *http.Request) {
		if p, ok := b.asked(w, r); ok {
			reply(w, http.StatusOK, p)
		}
	})
	mux.HandleFunc("GET /admin/v1/spend/requests/{id}", func(w http.ResponseWriter, r *http.Request) {
		rec, ok, err := b.Find(r.Context(), r.PathValue("id"))
		switch {
		case err != nil:
			refuse(w, http.StatusServiceUnavailable, "ledger_unavailable", "The ledger cannot be read; the log says why.")
			b.opt.Log.Error("the ledger cannot be read", "error", err)
		case !ok:
			refuse(w, http.StatusNotFound, "request_not_found", "The ledger has no request "+strconv.Quote(r.PathValue("id"))+": it is older than ledger.keep, or never was.")
		default:
			reply(w, http.StatusOK, &rec)
		}
	})
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		refuse(w, http.StatusNotFound, "unknown_url", "Unknown admin URL "+r.Method+" "+strconv.Quote(r.URL.Path)+". There are /admin/v1/spend, /admin/v1/spend/period and /admin/v1/spend/requests/{id}, all by GET.")
	})
	return mux
}

// asked reads the period that is asked for. When it is not ok the caller has been told.
func (b *Books) asked(w http.ResponseWriter, r *http.Request) (p Period, ok bool) {
	since, until, err := times(r.URL.Query(), b.opt.Now())
	if err != nil {
		refuse(w, http.StatusBadRequest, "invalid_parameter", err.Error()+".")
		return p, false
	}
	if p, err = b.Period(r.Context(), since, until); err != nil {
		refuse(w, http.StatusServiceUnavailable, "ledger_unavailable", "The ledger cannot be read; the log says why.")
		b.opt.Log.Error("the ledger cannot be read", "error", err)
		return p, false
	}
	return p, true
}

func times(q url.Values, now time.Time) (since, until time.Time, err error) {
	for name := range q {
		if !slices.Contains([]string{"by", "since", "until"}, name) {
			return since, until, errors.New("there is no parameter " + strconv.Quote(name) + ": want by, since or until")
		}
	}
	if since, err = ParseTime(q.Get("since"), now, now.Add(-lately)); err != nil {
		return since, until, errors.New("since: " + err.Error())
	}
	if until, err = ParseTime(q.Get("until"), now, now); err != nil {
		return since, until, errors.New("until: " + err.Error())
	}
	if !since.Before(until) {
		return since, until, errors.New("since is not before until")
	}
	return since, until, nil
}

// ParseTime reads a time as people give it: a while ago ("24h", "7d"), a day or a moment in UTC ("2026-11-28", "2026-11-28T10:00"), RFC 3339,
// or "now". Without a word it is otherwise.
func ParseTime(word string, now, otherwise time.Time) (time.Time, error) {
	switch word {
	case "":
		return otherwise, nil
	case "now":
		return now, nil
	}
	if days, ok := strings.CutSuffix(word, "d"); ok {
		if n, err := strconv.ParseFloat(days, 64); err == nil && n >= 0 && n < 1e5 {
			return now.Add(-time.Duration(n * 24 * float64(time.Hour))), nil
		}
	}
	if d, err := time.ParseDuration(word); err == nil && d >= 0 {
		return now.Add(-d), nil
	}
	for _, layout := range []string{time.DateOnly, "2006-01-02T15:04", "2006-01-02 15:04", time.RFC3339} {
		if t, err := time.ParseInLocation(layout, word, time.UTC); err == nil {
			return t, nil
		}
	}
	return time.Time{}, errors.New(strconv.Quote(word) + ` is no time: want a while ago such as 24h or 7d, a day such as 2026-11-28, or a moment such as 2026-11-28T10:00`)
}

func reply(w http.ResponseWriter, status int, v any) {
	b, err := json.Marshal(v)
	if err != nil {
		status, b = http.StatusInternalServerError, []byte(`{"error":{"message":"The answer cannot be encoded.","type":"server_error","param":null,"code":"internal_error"}}`)
	}
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(status)
	_, _ = w.Write(append(b, '\n')) // the reader has left: nobody to tell
}

func refuse(w http.ResponseWriter, status int, code, message string) {
	if message != "" && message[0] >= 'a' && message[0] <= 'z' {
		message = string(message[0]-'a'+'A') + message[1:]
	}
	reply(w, status, map[string]any{"error": map[string]any{"message": message, "type": "invalid_request_error", "param": nil, "code": code}})
}
