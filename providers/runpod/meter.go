package runpod

import (
	"cmp"
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
	last    sighting
	sum     endpoint.Reading
	quiet   time.Time // last look that saw no start under way
	began   time.Time // first look that saw the start that is under way; zero while there is none
	fell    time.Time // the last worker went by then
	worked  time.Time // end of the newest work, as told
	guessed span      // likewise, of work that only looks have seen: it ended somewhere in there
	cold    time.Duration
	rises   []*rise   // the newest, whose begin may still become better known
	waiting []jobTime // jobs whose worker no look has seen yet
	known   map[string]bool
}

func newWorkTime() *workTime { return &workTime{meter: &endpoint.Meter{}} }

// span is a stretch of time.
type span struct{ from, to time.Time }

func (s span) middle() time.Time    { return s.from.Add(s.to.Sub(s.from) / 2) }
func (s span) width() time.Duration { return s.to.Sub(s.from) }

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
	quiet  time.Time // last look before that saw no start under way; zero for none
	starts time.Time // first look that saw the start; zero where none did
	worker string    // its name, "" while nobody knows
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
		w.any = true
		w.noteStart(&l)
		w.publish()
		return
	}
	between := span{p.at(), l.at()}
	w.sum.Seconds += float64(min(p.up, l.up)) * between.width().Seconds()
	if w.balancer {
		w.sum.Cold += float64(min(p.starting, p.up)) * between.width().Seconds()
	}
	if p.up > 0 && l.up > 0 && between.width() > w.coldGuess() { // one may have gone and another one come
		w.sum.Doubt += between.width().Seconds()
	}
	w.noteWork(&p, &l, between)
	for n := p.up; n < l.up; n++ {
		w.rise(&p, &l, between)
	}
	for n := l.up; n < p.up; n++ {
		w.fall(&p, &l, between)
	}
	w.unseen(&l)
	w.noteStart(&l)
	w.publish()
}

// noteStart notes whether a start is under way.
func (w *workTime) noteStart(l *sighting) {
	switch {
	case l.starting == 0:
		w.quiet, w.began = l.at(), time.Time{}
	case w.began.IsZero():
		w.began = l.at()
	}
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
	r := &rise{seen: between.to, within: between, alone: p.up == 0, quiet: w.quiet, starts: w.began, came: between.middle()}
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
	for i, j := range w.waiting {
		if w.fits(r, &j) {
			w.waiting = slices.Delete(w.waiting, i, i+1)
			w.tell(r, &j)
			break
		}
	}
}

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
	if at.Before(r.quiet) && !r.quiet.After(r.came) {
		return r.quiet
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
	case r.told, r.worker == "" && w.known[j.worker], r.worker != "" && r.worker != j.worker:
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
	if !r.alone || !r.starts.IsZero() && r.starts.Before(j.sent) { // it was under way
		return
	}
	r.begun, r.doubt = j.sent, j.handing
	if r.quiet.After(j.sent) { // it waited before anything started
		free := span{r.quiet, r.quiet}
		if free.to = r.within.to; !r.starts.IsZero() {
			free.to = r.starts
		}
		r.begun, r.doubt = free.middle(), free.width()
	}
	w.learn(j.began.Sub(r.begun))
}

// bound has the list of workers correct when a worker began, as far as that is finer.
func (w *workTime) bound(r *rise) {
	if !r.listed.to.IsZero() {
		r.begun, r.doubt = r.listed.into(r.begun), min(r.doubt, r.listed.width())
	}
}

// remember notes the name of a worker that is accounted for.
func (w *workTime) remember(worker string) {
	if w.known == nil || len(w.known) >= mostKnown {
		w.known = map[string]bool{}
	}
	w.known[worker] = true
}

// job takes in what a job has told.
func (w *workTime) job(j jobTime) {
	if j.ended.After(w.worked) {
		w.worked = j.ended
	}
	if j.worker == "" || j.began.IsZero() {
		return
	}
	for _, r := range slices.Backward(w.rises) {
		if w.fits(r, &j) {
			w.tell(r, &j)
			w.publish()
			return
		}
	}
	switch {
	case w.known[j.worker]:
	case w.last.up > 0 && w.last.starting == 0 && j.sent.After(w.fell): // of a worker that was up at the first look
		w.remember(j.worker)
	case len(w.waiting) < mostWaiting:
		w.waiting = append(w.waiting, j)
	}
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
		if w.known[j.worker] || l.at().Sub(j.ended) > coldLimit {
			return true
		}
		gone := j.ended.Add(w.idle)
		switch {
		case l.up > 0:
			return l.starting == 0
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
		r := &rise{seen: gone, within: span{j.began, j.began}, alone: true, quiet: w.quiet, came: j.began}
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

// fall ends a worker that went between two looks.
func (w *workTime) fall(p, l *sighting, between span) {
	at := between.middle()
	if l.up == 0 { // it is the last one whose end follows from the last work
		switch e := w.endOfWork().Add(w.idle); {
		case e.After(between.to): // it did not wait for its time to be over
		case between.from.Sub(e) <= max(between.width(), w.idle/4):
			at = between.into(e)
		}
		w.fell = at
	}
	w.sum.Seconds += at.Sub(between.from).Seconds() + w.unit.Seconds()/2 // of a unit that was begun half is too much
	w.sum.Doubt += l.call.to.Sub(p.call.from).Seconds() + w.unit.Seconds()/2
}

// list takes in for how long workers say that they have run.
func (w *workTime) list(ts []told) {
	for _, t := range ts {
		i := slices.IndexFunc(w.rises, func(r *rise) bool { return r.worker == t.worker })
		if i < 0 && !w.known[t.worker] {
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
	ended time.Time // the newest request that told nothing of its worker; zero for none
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
	if len(w.jobs) >= mostWaiting {
		return
	}
	j := jobTime{worker: r.Worker, sent: r.Submitted, handing: r.Handing, began: r.Submitted.Add(r.Delayed)}
	switch {
	case r.Redone > 0 || r.Delayed <= 0: // what it waited for last does not begin where it was sent
		j.began, j.ended = time.Time{}, p.opt.Now()
	case r.Executed <= 0:
		j.ended = p.opt.Now()
	default:
		j.ended = j.began.Add(r.Executed)
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
