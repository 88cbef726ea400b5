package sim

import (
	"context"
	"fmt"
)

// Run simulates a scenario under a policy. The same three give the same Result. It panics on a scenario that Validate
// rejects.
func Run(sc Scenario, p Policy, seed uint64) Result { //nolint:gocritic // a value, so that no run changes another's
	res, err := RunContext(context.Background(), sc, p, seed)
	if err != nil {
		panic("BUG: " + err.Error())
	}
	return res
}

// RunContext is Run that ends early with ctx's error, or with what is wrong with the scenario.
func RunContext(ctx context.Context, sc Scenario, p Policy, seed uint64) (Result, error) { //nolint:gocritic // likewise
	if err := sc.Validate(); err != nil {
		return Result{}, err
	}
	w := build(&sc, seed)
	for i := range max(1, sc.Replicas) {
		w.replicas = append(w.replicas, newReplica(w, i, &p))
	}
	w.ledger = newLedger(w)
	w.traffic = newTraffic(&sc, seed)
	w.begin()
	for t := 0.0; t < w.end+w.life(drainSeconds); t += 60 {
		if err := ctx.Err(); err != nil {
			return Result{}, fmt.Errorf("simulate %s under %s: %w", sc.Name, p.Name, err)
		}
		w.run(t + 60)
	}
	res := w.result()
	res.Policy = p.Name
	return res, nil
}
