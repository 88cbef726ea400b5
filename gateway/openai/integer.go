package openai

import (
	"math"
	"math/bits"
)

// integer returns the value of the JSON number v; ok is false when it is no integer or does not fit.
// 5.0 and 1e3 are integers, as in JSON Schema.
func integer(v []byte) (n int64, ok bool) {
	negative := v[0] == '-'
	if negative {
		v = v[1:]
	}
	var m uint64       // the digits seen, trailing zeros left out
	zeros, exp := 0, 0 // zeros left out; power of ten that m is to be taken times
	point := false
	for i, c := range v {
		switch {
		case c == '.':
			point = true
			continue
		case c-'0' > 9: // e or E
			e, whole := exponent(v[i+1:])
			if !whole && m != 0 {
				return 0, false
			}
			exp += e
			return scale(m, exp+zeros, negative)
		case c == '0':
			zeros++
		default:
			for ; zeros >= 0; zeros-- {
				hi, lo := bits.Mul64(m, 10)
				if hi != 0 {
					return 0, false
				}
				m = lo
			}
			zeros = 0
			if m += uint64(c - '0'); m < uint64(c-'0') {
				return 0, false
			}
		}
		if point {
			exp--
		}
	}
	return scale(m, exp+zeros, negative)
}

// exponent reads the exponent of a number; ok is false when it is too large to matter.
func exponent(v []byte) (e int, ok bool) {
	negative := v[0] == '-'
	if negative || v[0] == '+' {
		v = v[1:]
	}
	for _, c := range v {
		if e = e*10 + int(c-'0'); e > 1<<30 {
			return 0, false
		}
	}
	if negative {
		e = -e
	}
	return e, true
}

// scale returns m times ten to the power of exp, where m has no trailing zero.
func scale(m uint64, exp int, negative bool) (n int64, ok bool) {
	if m == 0 {
		return 0, true
	}
	if exp < 0 || exp > 19 {
		return 0, false
	}
	for ; exp > 0; exp-- {
		if m > math.MaxUint64/10 {
			return 0, false
		}
		m *= 10
	}
	switch {
	case m <= math.MaxInt64 && negative:
		return -int64(m), true
	case m <= math.MaxInt64:
		return int64(m), true
	case m == math.MaxInt64+1 && negative:
		return math.MinInt64, true
	}
	return 0, false
}
