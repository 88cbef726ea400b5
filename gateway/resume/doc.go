// Package resume continues an answer that broke off: it keeps what a caller has of it, writes the request
// that makes another host go on behind it, and makes that host's events look like more of the first one's.
// It also puts a stream together to the one JSON object that a caller who asked for no stream waits for.
//
// Story does all of it for one answer. It is pure: no I/O, no time, no goroutines; one goroutine at a time
// may use a Story. See and Continue sit on the path of every token and allocate nothing once their buffers
// have grown.
//
//	Allowed     before sending: is it worth a Story?
//	Begin       the first attempt starts
//	See         each of its events that goes to the caller as it came
//	Reason      it broke off: may it be continued?
//	Ask, Seam   the request to the next host, and its answer begins
//	Continue    each event of it
//	End         nothing was left to ask for
//	Whole       or all of it as one object
//	Release     the buffers go to the next one
package resume
