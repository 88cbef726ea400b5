package runpod

import (
	"cmp"
	"maps"
	"slices"
	"time"

	"headrace/router/endpoint"
)

// workTime finds out for how long an endpoint's workers are billed: from the start of a worker's container to its end, which comes an idle
// timeout after its last work, in whole seconds (docs.runpod.io/serverless/pricing). Looks at /health show workers that are up, so that each
// coming and going lies between two of them. Where in between, and when the start began, is told by jobs, which say how long they waited and
// ran, by the list of workers, which says for how long each has run, and by the ends of requests. Whatever is learned late corrects what was
// added up. It is Run's own, but for meter.
type workTime struct {
	meter    *endpoint.Meter
	balancer bool          // the containers of its workers are counted, be they ready or not
	idle     time.Duration // a worker with nothing to do stays that long
	unit     time.Duration // each worker's time is billed in multiples of it
	assumed  time.Duration // what a start is billed for, where nothing is known

	any     bool
	first   time.Time // look that all counts from
	last    sighting
	before  time.Time // look before the last
	sum     endpoint.Reading
	starts  []span    // between two looks each start that is under way was begun, oldest first
	fell    time.Time // the last worker went by then
	worked  time.Time // end of the newest work, as told
	guessed span      // likewise, of work that only looks have seen: it ended somewhere in there
	cold    time.Duration
	rises   []*rise   // the newest, whose begin may still become better known
	waiting []jobTime // jobs whose worker no look has seen yet
	unnamed int       // workers that were up at the first look and have told no name yet
	known   map[string]bool
	older   map[string]bool      // what known was before it was full
	ends    map[string]time.Time // when workers have ended their newest jobs, of those that may be up
}

func newWorkTime() *workTime { return &workTime{meter: &endpoint.Meter{}} }

// span is a stretch of time.
type span struct{ from, to time.Time }

func (s span) middle() time.Time    { return s.from.Add(s.to.Sub(s.from) / 2) }
func (s span) width() time.Duration { return s.to.Sub(s.from) }

// holds tells whether t lies in the span.
func (s span) holds(t time.Time) bool { return !t.Before(s.from) && !t.After(s.to) }

// into is t, or the end of the span that is nearest to it.
func (s span) into(t time.Time) time.Time {
	switch {
	case t.Before(s.from):
		return s.from
	case t.After(s.to):
		return s.to
	}
	return t
}

// sighting is what a look at /health has shown, at some moment of the call.
type sighting struct {
	call     span
	up       int // workers that are billed
	starting int // workers on their way; of a load balancer those that are billed and not ready yet
	busy     bool
	done     int // jobs that were completed, ever
}

func (s *sighting) at() time.Time { return s.call.middle() }

// rise is a worker that came up.
type rise struct {
	seen   time.Time // up, by a look
	within span      // it came up
	alone  bool      // nobody else was up
	start  span      // its start was begun; from is zero where it was under way at the first look
	shown  bool      // a look has seen the start
	worker string    // its name, "" while nobody knows
	gone   bool      // without having told a name, as far as is known
	came   time.Time // best known
	begun  time.Time // likewise, of what is billed
	told   bool      // a job has said when it came
	listed span      // it began to be billed, as the list of workers says; zero where that says nothing
	doubt  time.Duration
}

// jobTime is when a job was done, and by whom.
type jobTime struct {
	worker       string
	sent         time.Time
	handing      time.Duration
	began, ended time.Time
}

// told is where a provider says for how long a worker has run.
type told struct {
	worker string
	begun  span
}

const (
	mostRises   = 64
	mostWaiting = 64
	mostKnown   = 512 // names of workers
)

// look takes in what a look at /health has shown.
func (w *workTime) look(l sighting) {
	p := w.last
	w.last = l
	if now := l.at(); !w.any || now.Before(p.at()) {
		w.any, w.first, w.before, w.unnamed = true, now, time.Time{}, l.up
		w.starts = w.starts[:0]
		w.noteStarts(span{to: l.call.to}, l.starting)
		w.publish()
		return
	}
	between := span{p.at(), l.at()}
	w.before = p.at()
	rises, falls := max(0, l.up-p.up), max(0, p.up-l.up)
	if !w.balancer {
		// A start that is over while no more are up than before has taken the place of a worker that went.
		swapped := min(max(0, p.starting-l.starting-rises), p.up-falls)
		rises, falls = rises+swapped, falls+swapped
	}
	w.sum.Seconds += float64(p.up-falls) * between.width().Seconds()
	if w.balancer {
		w.sum.Cold += float64(min(p.starting, p.up)) * between.width().Seconds()
	}
	if p.up > 0 && l.up > 0 && between.width() > w.coldGuess() { // one may have gone and another one come
		w.sum.Doubt += between.width().Seconds()
	}
	w.noteWork(&p, &l, between)
	for range rises {
		w.rise(&p, &l, between)
	}
	for n := range falls {
		w.fall(&p, &l, between, l.up == 0 && n == falls-1)
	}
	w.unseen(&l)
	w.noteStarts(span{p.call.from, l.call.to}, l.starting)
	w.forget(l.up, between.from)
	w.publish()
}

// noteStarts notes that so many starts are under way, after those that are over were taken out. New ones were begun within at.
func (w *workTime) noteStarts(at span, n int) {
	if w.balancer {
		return
	}
	for len(w.starts) < n {
		w.starts = append(w.starts, at)
	}
	if over := len(w.starts) - n; over > 0 { // given up, or of a worker that was not seen
		w.starts = slices.Delete(w.starts, 0, over)
	}
}

// forget drops what is known of workers that have gone: no more than up have not told their names, and none is there whose time was over.
func (w *workTime) forget(up int, before time.Time) {
	n := w.unnamed - up
	for _, r := range w.rises {
		if r.worker == "" && !r.gone {
			n++
		}
	}
	for ; n > 0 && w.unnamed > 0; n-- {
		w.unnamed--
	}
	for _, r := range w.rises {
		if n > 0 && r.worker == "" && !r.gone {
			r.gone = true
			n--
		}
	}
	maps.DeleteFunc(w.ends, func(_ string, t time.Time) bool { return t.Add(w.idle).Before(before) })
}

// noteWork finds out when work ended that other callers gave, from looks.
func (w *workTime) noteWork(p, l *sighting, between span) {
	switch {
	case l.busy:
		w.guessed = span{l.at(), l.at()}
	case p.busy, l.done > p.done:
		if w.worked.Before(between.from) {
			w.guessed = between
		}
	}
}

// endOfWork is when the workers had nothing to do any more.
func (w *workTime) endOfWork() time.Time {
	if g := w.guessed; w.worked.Before(g.from) {
		return g.middle()
	}
	return w.worked
}

// rise adds a worker that has come up between two looks.
func (w *workTime) rise(p, l *sighting, between span) {
	r := &rise{seen: between.to, within: between, alone: p.up == 0, start: span{p.call.from, l.call.to}, came: between.middle()}
	if len(w.starts) > 0 && !w.balancer {
		r.start, r.shown = w.starts[0], true
		w.starts = slices.Delete(w.starts, 0, 1)
	}
	r.begun = w.guess(r)
	r.doubt = l.call.to.Sub(p.call.from)
	if !w.balancer {
		r.doubt += w.coldGuess() / 4
	}
	w.sum.Starts++
	w.add(r, 1)
	if w.rises = append(w.rises, r); len(w.rises) > mostRises {
		w.rises = slices.Delete(w.rises, 0, 1)
	}
	best := -1
	for i, j := range w.waiting {
		if w.fits(r, &j) && (best < 0 || off(r, &j) < off(r, &w.waiting[best])) {
			best = i
		}
	}
	if best >= 0 {
		j := w.waiting[best]
		w.waiting = slices.Delete(w.waiting, best, best+1)
		w.tell(r, &j)
	}
}

// off is by how much a job's begin misses when a worker came up.
func off(r *rise, j *jobTime) time.Duration { return r.within.into(j.began).Sub(j.began).Abs() }

// add books what a worker cost until it was seen up, or takes that back where sign is -1.
func (w *workTime) add(r *rise, sign float64) {
	w.sum.Seconds += sign * r.seen.Sub(r.begun).Seconds()
	w.sum.Doubt += sign * r.doubt.Seconds()
	if !w.balancer {
		w.sum.Cold += sign * max(0, r.came.Sub(r.begun).Seconds())
	}
}

// guess is when the start of a worker began, where nobody tells.
func (w *workTime) guess(r *rise) time.Time {
	if w.balancer {
		return r.came
	}
	at := r.came.Add(-w.coldGuess())
	if r.shown || !r.start.from.After(r.came) {
		at = r.start.into(at)
	}
	if at.After(r.came) {
		return r.came
	}
	return at
}

// coldGuess is for how long starts were billed until a worker was up.
func (w *workTime) coldGuess() time.Duration {
	if w.cold > 0 {
		return w.cold
	}
	return w.assumed
}

// learn takes in how long a start was billed.
func (w *workTime) learn(d time.Duration) {
	switch {
	case d <= 0 || d > coldLimit || w.balancer:
	case w.cold == 0:
		w.cold = d
	default:
		w.cold += (d - w.cold) * 3 / 10
	}
}

// fits tells whether a job may have been what a worker came up for, or the first that it did.
func (w *workTime) fits(r *rise, j *jobTime) bool {
	switch {
	case r.told, r.worker == "" && w.knows(j.worker), r.worker != "" && r.worker != j.worker:
		return false
	}
	return j.began.Add(j.handing+time.Millisecond).After(r.within.from) && j.sent.Before(r.within.to) && j.began.Sub(r.within.to) < coldLimit
}

// tell has a job say when its worker came up, and began to.
func (w *workTime) tell(r *rise, j *jobTime) {
	w.remember(j.worker)
	r.worker, r.told = j.worker, true
	w.add(r, -1)
	defer func() {
		w.bound(r)
		w.add(r, 1)
	}()
	if r.within.into(j.began).Equal(j.began) {
		r.came = j.began
	}
	if r.begun = w.guess(r); w.balancer {
		return
	}
	w.findStart(r, j)
	r.begun = w.guess(r)
	switch {
	case r.start.holds(j.sent) && j.sent.Before(r.came): // what it was sent for
		if r.begun, r.doubt = j.sent, r.start.width()+j.handing; r.alone {
			r.doubt = j.handing
		}
	case !r.alone || j.sent.After(r.start.to): // it was under way
		return
	default: // it waited before anything started
		r.begun, r.doubt = r.start.middle(), r.start.width()
	}
	w.learn(j.began.Sub(r.begun))
}

// findStart gives r the start that was begun when its first job was sent, where that was taken for another worker's.
func (w *workTime) findStart(r *rise, j *jobTime) {
	if r.start.holds(j.sent) {
		return
	}
	for i := range w.starts {
		if w.starts[i].holds(j.sent) {
			if r.shown {
				r.start, w.starts[i] = w.starts[i], r.start
			} else { // one more was begun when this one came
				r.start, r.shown, w.starts[i] = w.starts[i], true, r.start
			}
			return
		}
	}
	for _, o := range w.rises {
		if o != r && !o.told && o.shown && r.shown && o.start.holds(j.sent) {
			w.add(o, -1)
			r.start, o.start = o.start, r.start
			o.begun = w.guess(o)
			w.bound(o)
			w.add(o, 1)
			return
		}
	}
}

// bound has the list of workers correct when a worker began, as far as that is finer.
func (w *workTime) bound(r *rise) {
	if !r.listed.to.IsZero() {
		r.begun, r.doubt = r.listed.into(r.begun), min(r.doubt, r.listed.width())
	}
}

// remember notes the name of a worker that is accounted for.
func (w *workTime) remember(worker string) {
	if len(w.known) >= mostKnown {
		w.known, w.older = nil, w.known
	}
	if w.known == nil {
		w.known = map[string]bool{}
	}
	w.known[worker] = true
}

// knows tells whether a worker is accounted for.
func (w *workTime) knows(worker string) bool {
	if !w.known[worker] && w.older[worker] {
		w.remember(worker)
	}
	return w.known[worker]
}

// job takes in what a job has told.
func (w *workTime) job(j jobTime) {
	if j.ended.After(w.worked) {
		w.worked = j.ended
	}
	if j.worker == "" {
		return
	}
	if w.ends == nil {
		w.ends = map[string]time.Time{}
	}
	if len(w.ends) < mostKnown && j.ended.After(w.ends[j.worker]) {
		w.ends[j.worker] = j.ended
	}
	if j.began.IsZero() {
		return
	}
	best := w.bestFit(&j)
	switch seen := w.any && j.began.Before(w.last.call.from); { // a look that follows may yet show what fits better
	case best != nil && (seen || off(best, &j) == 0):
		w.tell(best, &j)
		w.publish()
	case w.knows(j.worker):
	case seen && w.last.up > 0:
		w.place(&j)
		w.publish()
	case len(w.waiting) < mostWaiting:
		w.waiting = append(w.waiting, j)
	}
}

// bestFit is the worker that came up nearest to when a job of it began; nil for none.
func (w *workTime) bestFit(j *jobTime) (best *rise) {
	for _, r := range slices.Backward(w.rises) {
		if w.fits(r, j) && (best == nil || off(r, j) < off(best, j)) {
			best = r
		}
	}
	return best
}

// place finds out which worker it was that no look has shown coming with this job, which a look has followed: one that came earlier, one of
// those that were up at the first look, or one that has taken the place of another between two looks.
func (w *workTime) place(j *jobTime) {
	for _, r := range w.rises {
		if r.worker == "" && !r.gone && r.within.to.Before(j.sent) {
			r.worker = j.worker
			w.remember(j.worker)
			return
		}
	}
	if w.unnamed > 0 || j.began.Before(w.first) {
		w.unnamed = max(0, w.unnamed-1)
		w.remember(j.worker)
		return
	}
	gap := w.last.at().Sub(w.before)
	r := &rise{seen: j.began, within: span{j.began, j.began}, start: span{j.began.Add(-coldLimit), j.began}, came: j.began}
	if gone := w.ends[j.worker].Add(w.idle); gone.Before(w.last.call.from) && j.began.After(w.before) { // no look has seen it
		r.seen = gone
	}
	for i, s := range w.starts { // the one that took its place among those under way was begun when it came
		if s.holds(j.sent) {
			r.start, r.shown, w.starts[i] = s, true, span{j.began.Add(-gap), j.began.Add(gap)}
			break
		}
	}
	r.begun = w.guess(r)
	r.doubt = gap + w.coldGuess()/4
	w.sum.Starts++
	w.add(r, 1)
	w.tell(r, j)
	w.sum.Seconds += w.unit.Seconds() / 2
	w.sum.Doubt += w.unit.Seconds()
}

// done takes in that a request ended which told nothing of its worker.
func (w *workTime) done(at time.Time) {
	if at.After(w.worked) {
		w.worked = at
	}
}

// unseen accounts for workers that came and went between two looks: jobs tell that they were there.
func (w *workTime) unseen(l *sighting) {
	w.waiting = slices.DeleteFunc(w.waiting, func(j jobTime) bool {
		if w.knows(j.worker) || l.at().Sub(j.ended) > coldLimit {
			return true
		}
		gone := j.ended.Add(w.idle)
		best := w.bestFit(&j)
		switch {
		case best != nil && j.began.Before(l.call.from):
			w.tell(best, &j)
			return true
		case l.up > 0:
			if !j.began.Before(l.call.from) {
				return false
			}
			w.place(&j)
			return true
		case !gone.Before(l.call.from):
			return false // it may be seen yet
		case !j.began.After(w.fell):
			return true
		}
		for _, o := range w.waiting { // of the same worker
			if o.worker == j.worker && o.ended.Add(w.idle).After(gone) {
				gone = o.ended.Add(w.idle)
			}
		}
		r := &rise{seen: gone, within: span{j.began, j.began}, alone: true, came: j.began}
		switch {
		case len(w.starts) > 0:
			r.start, r.shown = w.starts[0], true
			w.starts = slices.Delete(w.starts, 0, 1)
		case w.before.Before(j.began):
			r.start = span{w.before, j.began}
		default:
			r.start = span{j.began.Add(-coldLimit), j.began}
		}
		r.begun = w.guess(r)
		w.sum.Starts++
		w.add(r, 1)
		w.tell(r, &j)
		w.sum.Seconds += w.unit.Seconds() / 2
		w.sum.Doubt += w.unit.Seconds()
		w.fell = gone
		return true
	})
}

// fall ends a worker that went between two looks; last where nobody is up after it.
func (w *workTime) fall(p, l *sighting, between span, last bool) {
	at := between.middle()
	name, end := w.nextEnd(between)
	switch {
	case last: // its end follows from the last work
		switch e := w.endOfWork().Add(w.idle); {
		case e.After(between.to): // it did not wait for its time to be over
		case between.from.Sub(e) <= max(between.width(), w.idle/4):
			at = between.into(e)
		}
		w.fell = at
	case name != "":
		at = end
		delete(w.ends, name)
	}
	w.sum.Seconds += at.Sub(between.from).Seconds() + w.unit.Seconds()/2 // of a unit that was begun half is too much
	w.sum.Doubt += l.call.to.Sub(p.call.from).Seconds() + w.unit.Seconds()/2
}

// nextEnd is which worker's time was over first within a span, and when, of those of which jobs tell; "" for none.
func (w *workTime) nextEnd(in span) (worker string, at time.Time) {
	for n, t := range w.ends {
		if t = t.Add(w.idle); in.holds(t) && (worker == "" || t.Before(at) || t.Equal(at) && n < worker) {
			worker, at = n, t
		}
	}
	return worker, at
}

// list takes in for how long workers say that they have run.
func (w *workTime) list(ts []told) {
	for _, t := range ts {
		i := slices.IndexFunc(w.rises, func(r *rise) bool { return r.worker == t.worker })
		if i < 0 && !w.knows(t.worker) {
			for k, r := range w.rises {
				if r.worker == "" && !t.begun.from.After(r.within.to) && r.within.to.Sub(t.begun.to) < coldLimit {
					i = k
				}
			}
		}
		if i < 0 {
			continue
		}
		r := w.rises[i]
		r.worker = t.worker
		w.remember(t.worker)
		if t.begun.from.After(r.within.to) || r.within.to.Sub(t.begun.to) > coldLimit || r.alone && t.begun.to.Before(w.fellBefore(r)) {
			continue // it says something else than when what is billed began
		}
		w.add(r, -1)
		r.listed = t.begun
		w.bound(r)
		w.add(r, 1)
		if cold := r.came.Sub(r.begun); t.begun.width() < cold/10 {
			w.learn(cold)
		}
	}
	w.publish()
}

// fellBefore is when the last worker had gone before r came, as far as that is known.
func (w *workTime) fellBefore(r *rise) time.Time {
	if w.fell.Before(r.within.to) {
		return w.fell
	}
	return time.Time{}
}

func (w *workTime) publish() {
	w.sum.At, w.sum.Up = w.last.at(), w.last.up
	w.meter.Set(w.sum)
}

// work is what requests have told of an endpoint's workers since Run last looked.
type work struct {
	jobs  []jobTime
	ended time.Time // the newest request of which no more is kept; zero for none
}

// Busy tells that a request to an endpoint has ended that a worker had worked on. It costs the request next to nothing.
func (p *Provider) Busy(id endpoint.ID, ended time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if w := p.workOf(id); ended.After(w.ended) {
		w.ended = ended
	}
}

// workOf is where what requests tell is put. The caller holds mu.
func (p *Provider) workOf(id endpoint.ID) *work {
	w := p.work[id]
	if w == nil {
		w = &work{}
		p.work[id] = w
	}
	return w
}

// jobDone notes what a job has told. The caller holds mu.
func (p *Provider) jobDone(id endpoint.ID, r *endpoint.WorkerReport) {
	if r.Submitted.IsZero() {
		return
	}
	w := p.workOf(id)
	j := jobTime{worker: r.Worker, sent: r.Submitted, handing: r.Handing, began: r.Submitted.Add(r.Delayed)}
	switch {
	case r.Redone > 0 || r.Delayed <= 0: // what it waited for last does not begin where it was sent
		j.began, j.ended = time.Time{}, p.opt.Now()
	case r.Executed <= 0:
		j.ended = p.opt.Now()
	default:
		j.ended = j.began.Add(r.Executed)
	}
	if len(w.jobs) >= mostWaiting { // when work ended is known still
		if j.ended.After(w.ended) {
			w.ended = j.ended
		}
		return
	}
	w.jobs = append(w.jobs, j)
}

// takeWork has an endpoint's account know what requests have told.
func (p *Provider) takeWork(s *service) {
	p.mu.Lock()
	w := p.work[serviceID(s.desc.id)]
	var jobs []jobTime
	var ended time.Time
	if w != nil {
		jobs, ended = w.jobs, w.ended
		w.jobs = nil
	}
	p.mu.Unlock()
	s.time.done(ended)
	for _, j := range jobs {
		s.time.job(j)
	}
}

// meterLook has an endpoint's account know what a look has shown.
func (p *Provider) meterLook(s *service, g *gauges, now time.Time) {
	p.takeWork(s)
	paced := func(d time.Duration) time.Duration { return time.Duration(float64(d) * cmp.Or(p.opt.Pace, 1)) }
	w := s.time
	w.balancer, w.idle, w.unit, w.assumed = s.desc.balancer, paced(s.desc.idleTimeout), paced(time.Second), cmp.Or(s.seen.cold, paced(assumedCold))
	l := sighting{call: span{s.look.begun, now}, done: g.completed}
	if w.balancer {
		l.up = max(g.ready, g.idle, g.running)
		l.starting = l.up - max(g.ready, g.idle)
	} else {
		l.up, l.starting = max(g.ready, g.idle, g.running), g.initializing
		l.busy = g.running > 0 || g.inProgress > 0
	}
	w.look(l)
}
