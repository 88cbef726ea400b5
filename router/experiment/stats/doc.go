// Package stats says what an experiment has shown so far, at any time and as often as somebody looks: whether an arm harms
// callers, whether it is shown to be within what is allowed, whether units fall on arms as they should, and whether hosts,
// not models, explain a difference. It knows no clock and does no I/O; whoever records tells the time.
//
// The unit of analysis is the unit of assignment. Failures and SLO misses are counted as they come, whoever is to blame: a
// unit that goes bad votes once per step, and falls on an arm with the probability in force (e-process, Ramdas et al.). First
// tokens, speed and price are compared like with like: each request with the control's on hosts of the same kind, with a
// prompt of about that length, under about that load; each unit counts once, as the mean of its requests (mSPRT and the
// confidence sequence that belongs to it: Robbins, Johari et al., Howard et al.). docs/experiments.md tells all of it.
package stats
