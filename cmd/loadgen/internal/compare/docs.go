package compare

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
)

// markers enclose the place of a column's table in a document.
func markers(column string) (begin, end []byte) {
	return fmt.Appendf(nil, "<!-- loadgen compare %s: begin -->", column), fmt.Appendf(nil, "<!-- loadgen compare %s: end -->", column)
}

// Splice puts text between the markers of a column. Each marker must occur exactly once, in order.
func Splice(doc []byte, column, text string) ([]byte, error) {
	begin, end := markers(column)
	for _, m := range [][]byte{begin, end} {
		if n := bytes.Count(doc, m); n != 1 {
			return nil, fmt.Errorf("%d times %q: want it once", n, m)
		}
	}
	i, j := bytes.Index(doc, begin)+len(begin), bytes.Index(doc, end)
	if j < i {
		return nil, fmt.Errorf("%q comes before %q", end, begin)
	}
	return fmt.Appendf(nil, "%s\n%s\n%s", doc[:i], bytes.TrimSpace([]byte(text)), doc[j:]), nil
}

// CheckDocs returns why a document could not take a column's table, before time is spent on one.
func CheckDocs(file, column string) error {
	doc, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	if _, err = Splice(doc, column, ""); err != nil {
		return fmt.Errorf("%s: %w", file, err)
	}
	return nil
}

// UpdateDocs replaces a column's table in a document, whole or not at all.
func UpdateDocs(file, column, text string) error {
	doc, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	changed, err := Splice(doc, column, text)
	if err != nil {
		return fmt.Errorf("%s: %w", file, err)
	}
	info, err := os.Stat(file)
	if err != nil {
		return err
	}
	f, err := os.CreateTemp(filepath.Dir(file), ".docs-*")
	if err != nil {
		return err
	}
	_, err = f.Write(changed)
	err = errors.Join(err, f.Chmod(info.Mode().Perm()), f.Close())
	if err == nil {
		err = os.Rename(f.Name(), file)
	}
	if err != nil {
		return errors.Join(err, os.Remove(f.Name()))
	}
	return nil
}
