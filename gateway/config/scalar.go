package config

import (
	"errors"
	"fmt"
	"math"
	"regexp"
	"strconv"
	"strings"
	"time"
)

// A mistake is what is wrong with one value, and how to put it right.
type mistake struct{ what, hint string }

var wholeNumber = regexp.MustCompile(`^[+-]?(0|[1-9][0-9]*)$`)

// parseInt reads a decimal number; the forms that YAML 1.1 and 1.2 read differently, such as 010
// and 0x1F, are refused.
func parseInt(s string) (int, *mistake) {
	if !wholeNumber.MatchString(s) {
		return 0, &mistake{"is not a whole number", "write decimal digits only, without separators or a leading 0"}
	}
	n, err := strconv.ParseInt(s, 10, strconv.IntSize)
	if err != nil {
		return 0, &mistake{"is out of range", ""}
	}
	return int(n), nil
}

var decimal = regexp.MustCompile(`^[+-]?([0-9]+(\.[0-9]*)?|\.[0-9]+)([eE][+-]?[0-9]+)?$`)

func parseNumber(s string) (float64, *mistake) {
	if decimal.MatchString(s) {
		f, err := strconv.ParseFloat(s, 64)
		if err != nil || math.IsInf(f, 0) {
			return 0, &mistake{"is out of range", ""}
		}
		return f, nil
	}
	const what = "is not a number"
	switch {
	case strings.HasSuffix(s, "%"):
		return 0, &mistake{what, "write a share of 1, such as 0.2 for 20%"}
	case strings.HasPrefix(s, "$"), strings.ContainsAny(s, "€£"), strings.Contains(strings.ToUpper(s), "USD"):
		return 0, &mistake{what, "write it without a currency: prices are in US dollars"}
	case strings.Contains(s, ","):
		return 0, &mistake{what, `write "." in front of the decimals and nothing between thousands`}
	}
	return 0, &mistake{what, "write decimal digits, such as 1.80"}
}

const shareHint = `write percents, such as "5%", or a share of 1, such as 0.05`

// parseShare reads "5%", "+20%" or 0.05 as a share of 1.
func parseShare(s string) (float64, *mistake) {
	number, percent := strings.CutSuffix(s, "%")
	n, m := parseNumber(strings.TrimSpace(number))
	switch {
	case m != nil:
		return 0, &mistake{"is no share", shareHint}
	case percent:
		n /= 100
	case n > 1 || n < -1:
		return 0, &mistake{"is no share of 1", `write "` + plainNumber(n) + `%" for percents`}
	}
	return n, nil
}

func plainShare(f float64) string { return plainNumber(f*100) + "%" }

const durationHint = `write a number with a unit: ms, s, m or h, such as "1.5s" or "2m"`

// maxDuration keeps sums of a few durations far from overflow.
const maxDuration = 366 * 24 * time.Hour

// parseDuration reads "2s" or "1h30m"; a bare 0 needs no unit.
func parseDuration(s string) (time.Duration, *mistake) {
	d, err := time.ParseDuration(s)
	if err == nil {
		switch {
		case d < 0:
			return 0, &mistake{"is negative", "write a duration of 0s or more"}
		case d > maxDuration:
			return 0, &mistake{"is longer than a year", "write a shorter one"}
		}
		return d, nil
	}
	number := s
	for _, unit := range []string{"days", "day", "d"} {
		number = strings.TrimSuffix(number, unit)
	}
	if number != s && decimal.MatchString(strings.TrimSpace(number)) {
		return 0, &mistake{"is not a duration: days are not understood", "write hours: one day is 24h"}
	}
	if decimal.MatchString(s) {
		return 0, &mistake{"is a number without a unit", durationHint}
	}
	if _, err := time.ParseDuration(strings.ReplaceAll(s, " ", "")); err == nil {
		return 0, &mistake{"is not a duration: it holds a space", durationHint}
	}
	return 0, &mistake{"is not a duration", durationHint}
}

var sizeUnits = map[string]int64{
	"": 1, "B": 1,
	"KB": 1e3, "MB": 1e6, "GB": 1e9,
	"KIB": 1 << 10, "MIB": 1 << 20, "GIB": 1 << 30,
}

const sizeHint = `write bytes, or a number with KiB, MiB, GiB, KB, MB or GB, such as "32MiB"`

var sizeForm = regexp.MustCompile(`^([0-9]+(?:\.[0-9]+)?) ?([A-Za-z]*)$`)

// parseSize reads bytes: "32MiB", "16KB" or "4096".
func parseSize(s string) (int64, *mistake) {
	m := sizeForm.FindStringSubmatch(s)
	if m == nil {
		return 0, &mistake{"is not a size", sizeHint}
	}
	unit := strings.ToUpper(m[2])
	factor, ok := sizeUnits[unit]
	if !ok {
		if _, ok := sizeUnits[unit+"B"]; ok {
			return 0, &mistake{"is not a size: K, M and G can mean powers of 1000 or of 1024", `write "32MiB" for 1024s, or "32MB" for 1000s`}
		}
		return 0, &mistake{"is not a size: no such unit", sizeHint}
	}
	n, err := strconv.ParseInt(m[1], 10, 64)
	switch {
	case errors.Is(err, strconv.ErrSyntax):
		f, err := strconv.ParseFloat(m[1], 64)
		f *= float64(factor)
		if err != nil || f > 1<<50 || f != math.Trunc(f) {
			return 0, &mistake{"is not a whole number of bytes", sizeHint}
		}
		return int64(f), nil
	case err != nil || n > (1<<50)/factor:
		return 0, &mistake{"is out of range", "the largest size is 1048576GiB"}
	}
	return n * factor, nil
}

// within checks a number against the limits of its field; shape writes a limit in the field's form.
func (f field) within(n float64, shape func(float64) string) *mistake {
	low, high := f.min != nil && n < *f.min, f.max != nil && n > *f.max
	switch {
	case f.above != nil && n <= *f.above:
		return &mistake{"must be above " + shape(*f.above), ""}
	case (low || high) && f.max != nil && f.min != nil:
		return &mistake{fmt.Sprintf("must be from %s to %s", shape(*f.min), shape(*f.max)), ""}
	case low:
		return &mistake{fmt.Sprintf("must be %s or more", shape(*f.min)), ""}
	case high:
		return &mistake{fmt.Sprintf("must be %s or less", shape(*f.max)), ""}
	}
	return nil
}

func plainNumber(f float64) string { return strconv.FormatFloat(f, 'f', -1, 64) }
