// Package dirwatch tells of changes in directories.
//
// On Linux it reads inotify by itself, at 4 KiB of stack: other libraries' readers have 128 KiB, and the runtime begins every stack of the
// process with the mean of all, so that one of them would double what each connection takes. Elsewhere it is fsnotify.
package dirwatch

// Event is a change in a directory. Attributes alone are none.
type Event struct {
	Path string // of what is another or gone, or of the directory itself; "" when Lost
	Lost bool   // some events did not come: look at everything
}
