package capacity

import "math"

// Learned is what was measured of a host, without its prior: it holds for another process, and for another prior.
type Learned struct {
	A        float64 `json:"a"`   // seconds: ITL(n) = A + B·n
	B        float64 `json:"b"`   // seconds
	SAA      float64 `json:"saa"` // variance of A, in s²
	SAB      float64 `json:"sab"`
	SBB      float64 `json:"sbb"`
	Residual float64 `json:"residual"` // variance of single observations around the curve, in s²
	Count    int     `json:"count"`    // decode observations

	TTFT      float64 `json:"ttft"` // seconds to the first token of a prompt of 500 tokens, with nobody before it
	TTFTVar   float64 `json:"ttft_var"`
	TTFTCount int     `json:"ttft_count"`

	Limit float64 `json:"limit"` // sequences at once that did not queue
}

// doubt is by how much the variance of what another process has measured is raised: the host may not be as it was.
const doubt = 4

// ok tells whether l can be calculated with.
func (l *Learned) ok() bool {
	curve := l.Count == 0 || within(l.A, 1e-7, maxSeconds) && within(l.B, 0, maxSeconds) && within(l.SAA, 0, maxSeconds) && within(l.SBB, 0, maxSeconds) &&
		l.SAB*l.SAB <= l.SAA*l.SBB && within(l.Residual, 0, maxSeconds)
	first := l.TTFTCount == 0 || within(l.TTFT, 1e-6, maxSeconds) && within(l.TTFTVar, 0, 100)
	return curve && first && l.Count >= 0 && l.TTFTCount >= 0 && (l.Count > 0 || l.TTFTCount > 0) && within(l.Limit, 1, maxInFlight)
}

// Learned returns what was measured, and how many seconds before at its newest observation was made; ok is false when there is none.
func (l *Learner) Learned(at float64) (m Learned, age float64, ok bool) {
	s := &l.s
	m = Learned{
		A: s.A * s.A0, B: s.B * s.A0, SAA: s.SAA * s.A0 * s.A0, SAB: s.SAB * s.A0 * s.A0, SBB: s.SBB * s.A0 * s.A0, Residual: s.Residual * s.A0 * s.A0, Count: l.Count,
		TTFT: s.ExpectedTTFT(typicalPrompt, 0) * s.TTFTFactor, TTFTVar: s.TTFTVar, TTFTCount: s.TTFTCount, Limit: s.Limit,
	}
	if l.Count > 0 {
		age = max(0, at-s.ObservedAt)
	}
	return m, age, m.ok()
}

// Warm starts a Learner that has measured less itself from what another has: with more doubt, and with less weight the more seconds it is
// old. It changes nothing, and returns false, where that is no better.
func (l *Learner) Warm(m *Learned, age, at float64) bool {
	if !m.ok() || !isTime(at) || !(age >= 0) || l.Count >= enough || m.Count <= l.Count && m.TTFTCount <= l.s.TTFTCount { //nolint:staticcheck // NaN
		return false
	}
	s := &l.s
	if m.Count > l.Count {
		k := 1 / s.A0
		s.A, s.B = max(floorShare, m.A*k), max(floorShare*s.Slope, m.B*k)
		s.SAA, s.SAB, s.SBB = doubt*m.SAA*k*k, doubt*m.SAB*k*k, doubt*m.SBB*k*k
		s.Residual = max(varFloor, m.Residual*k*k)
		l.Count = min(m.Count, enough)
		s.ObservedAt, s.At = at-age, at-age
		l.guard()
		s.Advance(at)
	}
	if m.TTFTCount > s.TTFTCount {
		// As with the curve, what is old says less.
		w := math.Exp(-max(0, age-revertAfter) / revertSeconds)
		s.TTFTLog = w * max(-2, min(2, math.Log(m.TTFT/s.ExpectedTTFT(typicalPrompt, 0))))
		s.TTFTFactor = math.Exp(s.TTFTLog)
		s.TTFTVar = max(ttftVarFloor, w*m.TTFTVar+(1-w)*ttftVarStart)
		s.TTFTCount = min(m.TTFTCount, enough)
		s.TTFTSigma = s.ttftSigma()
	}
	if w := math.Exp(-age / revertSeconds); m.Limit < s.Limit {
		s.Limit = max(1, s.Limit+w*(m.Limit-s.Limit))
	}
	return true
}

// Merge is what several processes have measured of one host at about the same time, each by requests of its own.
func Merge(ms []Learned) (m Learned, ok bool) {
	var paa, pab, pbb, qa, qb float64 // sums of precisions, and of those times the mean
	most := -1
	for i := range ms {
		l := &ms[i]
		if !l.ok() {
			continue
		}
		if n := l.Count + l.TTFTCount; n > most {
			most, m.Limit = n, l.Limit
		}
		if l.Count > 0 {
			det := l.SAA*l.SBB - l.SAB*l.SAB
			if det <= 0 {
				continue
			}
			aa, ab, bb := l.SBB/det, -l.SAB/det, l.SAA/det
			paa, pab, pbb = paa+aa, pab+ab, pbb+bb
			qa, qb = qa+aa*l.A+ab*l.B, qb+ab*l.A+bb*l.B
			w := float64(l.Count) / float64(m.Count+l.Count)
			m.Residual += w * (l.Residual - m.Residual)
			m.Count += l.Count
		}
		if l.TTFTCount > 0 {
			w := float64(l.TTFTCount) / float64(m.TTFTCount+l.TTFTCount)
			if m.TTFTCount == 0 {
				m.TTFT = l.TTFT
			}
			m.TTFT = math.Exp(math.Log(m.TTFT) + w*math.Log(l.TTFT/m.TTFT))
			m.TTFTVar += w * (l.TTFTVar - m.TTFTVar)
			m.TTFTCount += l.TTFTCount
		}
	}
	if det := paa*pbb - pab*pab; m.Count > 0 && det > 0 {
		m.SAA, m.SAB, m.SBB = pbb/det, -pab/det, paa/det
		m.A, m.B = m.SAA*qa+m.SAB*qb, m.SAB*qa+m.SBB*qb
		m.B = max(0, m.B)
	} else {
		m.Count = 0
	}
	return m, m.ok()
}
