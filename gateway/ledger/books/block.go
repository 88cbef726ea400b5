package books

import (
	"encoding/binary"
	"slices"
	"time"

	"github.com/cespare/xxhash/v2"

	"headrace/gateway/ledger"
	"headrace/router/endpoint"
	"headrace/router/outcome"
)

// blockSize is how many requests one line of the file holds.
const blockSize = 512

// block is what is written of some requests, one by one: the names of their cells, then the requests.
type block struct {
	no          uint32
	cells       []Cell // of which the hour says nothing
	ids         []uint64
	first, last int64 // Unix microseconds at which the requests came
	buf         []byte
}

// hashID is by which a request is looked up. Ids are random: two of the same hash are the same request.
func hashID(id string) uint64 { return xxhash.Sum64String(id) }

// add appends a request; at are the places of its attempts' cells.
func (b *block) add(r *ledger.Record, hash uint64, cell int64, at *[ledger.MaxAttempts]int64) {
	when := r.At.UnixMicro()
	if len(b.ids) == 0 {
		b.first, b.last = when, when
	}
	b.first, b.last = min(b.first, when), max(b.last, when)
	b.ids = append(b.ids, hash)
	b.buf = appendText(b.buf, r.ID)
	b.buf = binary.AppendVarint(b.buf, when)
	b.buf = binary.AppendVarint(b.buf, cell)
	b.buf = append(b.buf, byte(r.Class))
	b.buf = binary.AppendVarint(b.buf, int64(r.Status))
	b.buf = appendFloat64(b.buf, r.USD)
	b.buf = encode(b.buf, r, at)
}

// body is what a line of the file holds of the block.
func (b *block) body(dst []byte) []byte {
	dst = append(dst, bodyVersion)
	dst = binary.AppendUvarint(dst, uint64(len(b.cells)))
	for i := range b.cells {
		c := &b.cells[i]
		for _, s := range [...]string{c.Key, c.Model, c.Served, c.Provider, c.Host, c.Arm} {
			dst = appendText(dst, s)
		}
	}
	dst = binary.AppendUvarint(dst, uint64(len(b.ids)))
	return append(dst, b.buf...)
}

// hashes are those of the block's requests, sorted, as a line of the file holds them.
func (b *block) hashes(dst []byte) []byte {
	slices.Sort(b.ids)
	for _, h := range b.ids {
		dst = binary.LittleEndian.AppendUint64(dst, h)
	}
	return dst
}

// holds tells whether a hash is among those of a line.
func holds(hashes []byte, h uint64) bool {
	lo, hi := 0, len(hashes)/8
	for lo < hi {
		m := int(uint(lo+hi) >> 1)
		if binary.LittleEndian.Uint64(hashes[8*m:]) < h {
			lo = m + 1
		} else {
			hi = m
		}
	}
	return lo < len(hashes)/8 && binary.LittleEndian.Uint64(hashes[8*lo:]) == h
}

// readBlock calls each for every request of a line, until it returns false. r is valid during the call only.
func readBlock(body []byte, each func(r *ledger.Record) bool) error {
	d := reader{b: body}
	if d.byte() != bodyVersion {
		return errBody
	}
	n := d.count()
	cells := make([]Cell, n)
	for i := range cells {
		c := &cells[i]
		for _, s := range [...]*string{&c.Key, &c.Model, &c.Served, &c.Provider, &c.Host, &c.Arm} {
			*s = d.text()
		}
	}
	cell := func(i int64) (c Cell) {
		if i < 0 || i >= int64(len(cells)) {
			d.bad = true
			return c
		}
		return cells[i]
	}
	for range d.count() {
		r := ledger.Record{ID: d.text()}
		r.At = time.UnixMicro(d.varint())
		c := cell(d.varint())
		r.Key, r.Model, r.Arm, r.Served, r.Provider, r.Endpoint = c.Key, c.Model, c.Arm, c.Served, c.Provider, endpoint.ID(c.Host)
		r.Class = outcome.Class(d.byte())
		r.Status = int(d.varint())
		r.USD = d.float64()
		if d.decode(&r, cell); d.bad {
			return errBody
		}
		if !each(&r) {
			return nil
		}
	}
	if d.bad || len(d.b) > 0 {
		return errBody
	}
	return nil
}
