package state

import (
	"context"
	"errors"
	"time"
)

// ErrNowhere says that there is no directory in which something could be kept, or none that can be written.
var ErrNowhere = errors.New("no directory to keep it in")

// keepTime is how long the directory is waited for, in which another process may write.
const keepTime = time.Second

// Keep notes in the directory what could not be told to Redis, for this process's next one; nil takes it back. Nobody else is told of it. The
// error may be ErrNowhere.
func (d *Docs) Keep(kind, name string, body []byte) error {
	if d.kept == nil {
		return ErrNowhere
	}
	ctx, cancel := context.WithTimeout(context.Background(), keepTime)
	defer cancel()
	for {
		docs, err := d.kept.Load(ctx, kind)
		if err != nil {
			return err
		}
		is, exists := docs[name]
		switch {
		case body != nil:
			_, err = d.kept.Put(ctx, kind, name, is.Version, body)
		case exists:
			err = d.kept.Delete(ctx, kind, name, is.Version)
		}
		if errors.Is(err, ErrConflict) { // another process has the same directory
			continue
		}
		if err == nil && d.kept.InMemory() {
			return ErrNowhere
		}
		return err
	}
}

// Kept returns what is kept of a kind, by name. The caller owns the map.
func (d *Docs) Kept(kind string) (map[string][]byte, error) {
	if d.kept == nil {
		return nil, nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), keepTime)
	defer cancel()
	docs, err := d.kept.Load(ctx, kind)
	if err != nil {
		return nil, err
	}
	all := make(map[string][]byte, len(docs))
	for name, doc := range docs {
		all[name] = doc.Body
	}
	return all, nil
}
