package books

import (
	"sync"
	"time"

	"headrace/router/endpoint"
)

// Charge is what a provider billed for one host for a while, beside what the ledger has of it.
type Charge struct {
	Host           endpoint.ID
	From, To       time.Time
	Billed, Ledger float64 // USD
}

// hours are those that the charge covers whole, by the begins of the first and behind the last, in Unix seconds.
func (c *Charge) hours() (from, to int64) {
	return hourOf(c.From.Add(time.Hour - 1)), hourOf(c.To)
}

// names tells whether the bill speaks of the host: one that has nothing where something was due may have it later.
func (c *Charge) names() bool { return c.Billed > 0 }

// of is what an hour of the charge was billed for which the ledger has usd.
func (c *Charge) of(usd float64) float64 {
	if n := c.To.Sub(c.From).Hours(); c.Ledger <= 0 || n <= 1 {
		return c.Billed / n
	}
	return usd * c.Billed / c.Ledger
}

// pendingBills are bills that wait for being written.
type pendingBills struct {
	mu      sync.Mutex // guards all below
	list    []Bill
	charges []Charge
}

const (
	mostBills   = 100
	mostCharges = 10_000
)

func (p *pendingBills) any() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.list)+len(p.charges) > 0
}

func (p *pendingBills) take() ([]Bill, []Charge) {
	p.mu.Lock()
	defer p.mu.Unlock()
	l, c := p.list, p.charges
	p.list, p.charges = nil, nil
	return l, c
}

// giveBack puts them in front of those that came since.
func (p *pendingBills) giveBack(l []Bill, c []Charge) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.list = append(l, p.list...); len(p.list) > mostBills {
		p.list = p.list[len(p.list)-mostBills:]
	}
	if p.charges = append(c, p.charges...); len(p.charges) > mostCharges {
		p.charges = p.charges[len(p.charges)-mostCharges:]
	}
}

// Billed notes how a bill compares, and what its parts say of single hosts: of hours that lie in them whole, that counts from then on.
func (b *Books) Billed(bill Bill, parts []Charge) {
	b.bills.mu.Lock()
	defer b.bills.mu.Unlock()
	if b.bills.list = append(b.bills.list, bill); len(b.bills.list) > mostBills {
		b.bills.list = b.bills.list[1:]
	}
	for _, c := range parts {
		if c.names() && len(b.bills.charges) < mostCharges {
			b.bills.charges = append(b.bills.charges, c)
		}
	}
}
