package state

import (
	"bytes"
	"context"
	"maps"
	"sync"
	"time"
)

// Memory is a Store that ends with the process.
type Memory struct {
	watchers watchers

	mu   sync.Mutex // guards all below
	docs map[string]map[string]Doc
}

// NewMemory returns an empty Store.
func NewMemory() *Memory { return &Memory{docs: map[string]map[string]Doc{}} }

// Load implements Store.
func (m *Memory) Load(ctx context.Context, kind string) (map[string]Doc, error) {
	if err := checkKind(kind); err != nil {
		return nil, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	docs := maps.Clone(m.docs[kind])
	if docs == nil {
		docs = map[string]Doc{}
	}
	return docs, ctx.Err()
}

// Put implements Store.
func (m *Memory) Put(ctx context.Context, kind, name string, old Version, body []byte) (Version, error) {
	if err := checkDoc(kind, name, body); err != nil {
		return 0, err
	}
	if err := ctx.Err(); err != nil {
		return 0, err
	}
	v, err := m.put(kind, name, old, bytes.Clone(body))
	if err == nil {
		m.watchers.tell(kind)
	}
	return v, err
}

func (m *Memory) put(kind, name string, old Version, body []byte) (Version, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.docs[kind][name].Version != old {
		return 0, ErrConflict
	}
	if m.docs[kind] == nil {
		m.docs[kind] = map[string]Doc{}
	}
	v := newer(old, time.Now())
	m.docs[kind][name] = Doc{v, body}
	return v, nil
}

// Delete implements Store.
func (m *Memory) Delete(ctx context.Context, kind, name string, old Version) error {
	if err := checkDoc(kind, name, nil); err != nil {
		return err
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if d, ok := m.docs[kind][name]; !ok || d.Version != old {
		return ErrConflict
	}
	delete(m.docs[kind], name)
	m.watchers.tell(kind)
	return nil
}

// Watch implements Store.
func (m *Memory) Watch(kind string) (changes <-chan struct{}, stop func()) {
	return m.watchers.add(kind)
}
