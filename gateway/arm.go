package gateway

import (
	"bytes"
	"encoding/binary"
	"slices"
	"strings"

	"headrace/gateway/openai"
	"headrace/router"
	"headrace/router/affinity"
	"headrace/router/experiment"
)

// Experiments: a request's unit belongs to an arm before a host is looked for, and the host is then looked for among the arm's. Only
// when there is none does another one of the model's serve the request, that is on trial nowhere; it counts as the arm's all the same
// (intention to treat).

// wantsArm is the header field by which a request chooses its arm, as "experiment=arm".
const wantsArm = "Arm"

// assign finds the request's arm.
func (x *exchange) assign() *openai.Error {
	var t *experiment.Table
	if x.s.opt.Arms != nil {
		t = x.s.opt.Arms()
	}
	if x.rec.Forced {
		return x.choosesArm(t)
	}
	list := t.Of(x.model)
	if len(list) == 0 {
		return nil
	}
	var room [64]byte
	for _, a := range list {
		if unit := x.unit(a.Spec, room[:0]); len(unit) > 0 && a.Takes(unit) {
			arm, key := a.Assign(unit)
			x.joins(arm, key, a.Lot)
			x.casts(a, arm)
			return nil
		}
	}
	x.ask.Model = list[0].Outside().Pool() // of nobody's business, and yet not for hosts that are on trial
	return nil
}

// unit returns what is assigned, empty where the request has nothing of the kind. room is memory for it.
func (x *exchange) unit(s *experiment.Spec, room []byte) []byte {
	for i := range s.Units {
		u := room
		switch s.Units[i].Kind {
		case experiment.ByRequest:
			u = append(u, x.rec.ID...)
		case experiment.BySession:
			if h := x.ask.Affinity.Session; h != 0 {
				u = binary.BigEndian.AppendUint64(u, affinity.NameHash(x.model, h)) // layers may be of several models
			}
		case experiment.ByUser:
			u = x.scan.User
		case experiment.ByKey:
			u = append(u, x.rec.Key...)
		case experiment.ByHeader:
			u = bytes.TrimSpace(x.ctx.Request.Header.Peek(s.Units[i].Header))
		}
		if len(u) > 0 {
			return u
		}
	}
	return nil
}

// joins makes the request the arm's.
func (x *exchange) joins(arm *experiment.Arm, key experiment.Key, lot experiment.Lot) {
	x.rec.Arm, x.rec.Unit, x.rec.Lot = arm.Label(), key, lot
	x.ask.Model = arm.Pool()
	if arm.OnPreemption != "" && x.onLoss == x.set.OnPreemption[x.model] { // else the request has said so itself
		x.onLoss, _ = ParsePreemption(arm.OnPreemption) // the config knows its words
	}
	if arm.Model == "" || x.form != nil {
		return
	}
	snap, body := x.s.router.Snapshot(), x.ctx.Request.Body()
	if snap.TextOnly(arm.Model) {
		x.ask.Media = holdsMedia(body)
	}
	if snap.Plain(arm.Model) {
		x.ask.Beyond = beyondPlain(body)
	}
}

// choosesArm serves a request that says itself where it wants to go. It is not counted among those that were drawn.
func (x *exchange) choosesArm(t *experiment.Table) *openai.Error {
	const header = "x-headrace-arm"
	want := string(bytes.TrimSpace(x.ctx.Request.Header.Peek(headerPrefix + wantsArm)))
	name, arm, ok := strings.Cut(want, "=")
	a := t.Named(name)
	switch {
	case !ok:
		return errDemand(header, "experiment=arm")
	case !x.grant.MayArm(name):
		return &openai.Error{
			Status: 403, Type: "invalid_request_error", Param: header, Code: "arm_not_allowed",
			Message: "This key may not choose the arm of an experiment. Leave " + header + " out, or use a key that may.",
		}
	case a == nil || a.Spec.Model != x.model:
		return errDemand(header, "the name of an experiment on the model that is asked for, and one of its arms")
	}
	is, _ := a.Spec.Arm(arm)
	if is == nil {
		names := make([]string, len(a.Spec.Arms))
		for i := range a.Spec.Arms {
			names[i] = a.Spec.Arms[i].Name
		}
		return errDemand(header, name+"= and one of "+strings.Join(names, ", "))
	}
	var room [64]byte
	x.joins(is, a.Key(x.unit(a.Spec, room[:0])), a.Lot)
	return nil
}

// choose leases the best host of the arm, else one of those that may serve what finds no room at its arm's. outside tells that this is
// none of the arm's.
func (x *exchange) choose(q *router.Request, l *router.Lease) (outside bool, err error) {
	r := x.s.router
	if q.Model == x.model {
		return false, r.Pick(q, l)
	}
	q.Firm = true
	err = r.Pick(q, l)
	if q.Firm = false; err == nil {
		return false, nil
	}
	pool := q.Model
	err = x.beyondArm(q, l)
	q.Model, q.Firm = pool, false
	return err == nil && x.rec.Arm != "" && !r.Snapshot().InPool(pool, l.Endpoint.ID), err
}

// beyondArm leases a host beyond the arm's. Hosts on trial serve their own units and nobody else, unless their experiment says that others'
// requests may spill over to them while they are tried. q's Model and Firm are anything afterwards.
func (x *exchange) beyondArm(q *router.Request, l *router.Lease) error {
	r, list := x.s.router, x.s.opt.Arms().Of(x.model)
	rest := x.model // of which no part is on trial, once the experiments were taken out of the config
	if len(list) > 0 {
		if _, ok := r.Snapshot().Pool(list[0].Spec.Rest()); ok { // the router may have read that config before the table has
			rest = list[0].Spec.Rest()
		}
	}
	if slices.ContainsFunc(list, func(a *experiment.Assigner) bool { return a.Spec.Spill }) {
		q.Firm, q.Model = true, rest
		if err := r.Pick(q, l); err == nil {
			return nil
		}
		for _, a := range list {
			for i := range a.Spec.Arms {
				if arm := &a.Spec.Arms[i]; a.Spec.Spill && a.Tries(arm) {
					q.Model = arm.Pool()
					if err := r.Pick(q, l); err == nil {
						return nil
					}
				}
			}
		}
	}
	q.Firm, q.Model = false, rest
	return r.Pick(q, l)
}

// hedges tells whether a late first token has a second host asked.
func (x *exchange) hedges() bool {
	if x.rec.Arm == "" {
		return x.set.Hedge
	}
	if p, ok := x.s.opt.Arms().Labelled(x.rec.Arm); ok && p.Arm().Hedge != "" {
		return p.Arm().Hedge == "sunk"
	}
	return x.set.Hedge
}
