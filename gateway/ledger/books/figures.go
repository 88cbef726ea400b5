package books

// Figure is a number of a line by its name, as JSON and CSV have it.
type Figure struct {
	Name  string
	Value any // int64, float64, or nil for none
}

// Figures are all numbers of the line, those that follow from others too, in an order that stays.
func (l *Line) Figures() []Figure {
	fs := make([]Figure, 0, int(numCounts)+int(numAmounts)+6)
	for i, n := range l.N {
		fs = append(fs, Figure{countNames[i], n})
	}
	var per any
	if usd, ok := l.PerMTok(); ok {
		per = usd
	}
	fs = append(fs, Figure{"used_usd", l.Used()}, Figure{"idle_usd", l.IdleUSD}, Figure{"allocated_usd", l.Allocated()}, Figure{"billed_usd", l.BilledUSD},
		Figure{"usd_per_mtok", per}, Figure{"wasted_usd", l.WastedUSD()})
	for i, f := range l.F {
		fs = append(fs, Figure{amountNames[i], f})
	}
	return fs
}
