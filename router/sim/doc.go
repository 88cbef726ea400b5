// Package sim runs the router in virtual time against a fleet of simulated GPU hosts, next to simpler policies and one
// that knows everything, and reports what each would have cost and promised.
//
// The router is the real one: it gets endpoints through Update, late and sometimes wrong, as a control plane tells them;
// requests go Pick -> FirstContent -> Progress -> Done with retries and continuation as the gateway makes them. The hosts
// are not the learner's model: see Truth. Units are seconds, tokens and US dollars.
//
// A run reads no clock and does no I/O, uses one goroutine, and depends on its Scenario, Policy and seed alone: the same
// three give the same Result, bit by bit on one processor architecture (others may round differently).
package sim
