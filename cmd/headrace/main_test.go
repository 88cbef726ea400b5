package main

import (
	"errors"
	"testing"
)

// TestFlagsThatAreWrong end every command with code 2, as its help says.
func TestFlagsThatAreWrong(t *testing.T) {
	for _, args := range [][]string{{"report", "--nope"}, {"keys", "create", "x", "--rpm", "lots"}, {"simulate", "--nope"}} {
		c := root()
		c.SetArgs(args)
		var ee *exitError
		if err := c.ExecuteContext(t.Context()); !errors.As(err, &ee) || ee.code != 2 {
			t.Errorf("%q: %v, want exit code 2", args, err)
		}
	}
}
