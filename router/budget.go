package router

import "sync/atomic"

// BudgetOptions bound retries over all requests, so that a sick fleet is not buried under them.
type BudgetOptions struct {
	PerRequest float64 // retries earned by a request; 0 means 0.2
	Cap        int     // most retries saved up, and the number at start; 0 means 200
}

// Budget is a token bucket of retries, or of hedges, filled by requests. It counts in thousandths.
type Budget struct {
	left      atomic.Int64
	perMille  int64
	capMilles int64
}

// NewBudget returns a full budget.
func NewBudget(o BudgetOptions) *Budget {
	if o.PerRequest <= 0 {
		o.PerRequest = 0.2
	}
	if o.Cap <= 0 {
		o.Cap = 200
	}
	b := &Budget{perMille: int64(o.PerRequest * 1000), capMilles: int64(o.Cap) * 1000}
	b.left.Store(b.capMilles)
	return b
}

// Earn credits one request.
func (b *Budget) Earn() {
	if l := b.left.Load(); l < b.capMilles { // a full budget, the usual case, is not written to
		b.left.CompareAndSwap(l, min(b.capMilles, l+b.perMille)) // a lost race loses a fifth of a retry
	}
}

// Refund gives back a retry that was not made after all.
func (b *Budget) Refund() {
	if b.left.Load()+1000 <= b.capMilles {
		b.left.Add(1000)
	}
}

// Left tells whether there is a retry to be had.
func (b *Budget) Left() bool { return b.left.Load() >= 1000 }

// Spend takes one retry; false means there is none.
func (b *Budget) Spend() bool {
	for {
		l := b.left.Load()
		if l < 1000 {
			return false
		}
		if b.left.CompareAndSwap(l, l-1000) {
			return true
		}
	}
}
