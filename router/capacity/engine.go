package capacity

import "time"

// Engine is what an endpoint's engine says of itself: evidence of its load that covers every gateway and caller.
type Engine struct {
	Running float64 // sequences in the batch, of all its engines together
	Waiting float64 // sequences in its queue
	// KVUse is the used share of the KV cache in [0,1], NaN when the engine does not say.
	KVUse float64
	// CacheHitRate is the share of prompt tokens lately found in the prefix cache, in [0,1], NaN when the engine does not say.
	CacheHitRate float64
	At           time.Time // when it said so
}
