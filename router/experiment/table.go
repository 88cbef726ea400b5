package experiment

// Table is all experiments of a gateway as requests see them. It is immutable; a nil Table has none.
type Table struct {
	byModel map[string][]*Assigner
	byName  map[string]*Assigner
	arms    map[string]Place // by label
}

// NewTable returns the table of the given experiments, in the order in which requests are offered to them.
func NewTable(as []*Assigner) *Table {
	t := &Table{byModel: map[string][]*Assigner{}, byName: map[string]*Assigner{}, arms: map[string]Place{}}
	for _, a := range as {
		t.byModel[a.Spec.Model] = append(t.byModel[a.Spec.Model], a)
		t.byName[a.Spec.Name] = a
		for i := range a.Spec.Arms {
			t.arms[a.Spec.Arms[i].Label()] = Place{a, i}
		}
	}
	return t
}

// Of returns the experiments on a model. Nobody changes the slice.
func (t *Table) Of(model string) []*Assigner {
	if t == nil {
		return nil
	}
	return t.byModel[model]
}

// Named returns the experiment of that name, nil when there is none.
func (t *Table) Named(name string) *Assigner {
	if t == nil {
		return nil
	}
	return t.byName[name]
}

// Place is an arm of an experiment, as requests see it.
type Place struct {
	*Assigner
	Index int
}

// Arm is the arm itself.
func (p Place) Arm() *Arm { return &p.Spec.Arms[p.Index] }

// Labelled returns the arm with that label.
func (t *Table) Labelled(label string) (p Place, ok bool) {
	if t != nil {
		p, ok = t.arms[label]
	}
	return p, ok
}
