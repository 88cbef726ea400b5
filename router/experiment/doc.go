// Package experiment says which requests belong to which arm of an experiment, and how the share of each arm follows from what was
// seen of it. It does no I/O and reads no clock: package gateway/experiments keeps its documents, and hands it the time and the figures.
//
// A request's unit (itself, its session, user or key) has a position in [0,1) that is the same at every replica and for ever. An arm
// that is tried has a stretch of that line which begins at the same place whatever its share: raising the share adds units and moves none.
package experiment
