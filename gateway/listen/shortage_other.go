//go:build !unix

package listen

func isShortage(error) bool { return false }
