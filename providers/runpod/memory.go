package runpod

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

// File is a Memory in a file of that name. Processes that run at the same time must not share it.
type File string

// Load reads the file; one that is not there keeps nothing. The error names a missing directory too, before it is needed.
func (f File) Load(context.Context) ([]byte, error) {
	b, err := os.ReadFile(string(f))
	if errors.Is(err, fs.ErrNotExist) {
		if _, err := os.Stat(filepath.Dir(string(f))); err != nil {
			return nil, fmt.Errorf("directory of held_file: %w", err)
		}
		return nil, nil
	}
	return b, err
}

// Save replaces the file as a whole, and is done when it is on the disk. Nil removes it.
func (f File) Save(_ context.Context, b []byte) (err error) {
	if b == nil {
		if err := os.Remove(string(f)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		return nil
	}
	t, err := os.CreateTemp(filepath.Dir(string(f)), filepath.Base(string(f))+".*")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			_ = os.Remove(t.Name())
		}
	}()
	_, err = t.Write(b)
	err = errors.Join(err, t.Sync(), t.Close())
	if err != nil {
		return err
	}
	return os.Rename(t.Name(), string(f))
}
