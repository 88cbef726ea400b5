package main

import (
	"context"
	"log/slog"
	"math"
	"time"

	"headrace/router"
)

const calibrationEvery = 5 * time.Second

// watchCalibration looks at the router's calibration at every tick and logs when its alarm begins and when it ends, once
// each, until ctx is done.
func watchCalibration(ctx context.Context, r *router.Router, ticks <-chan time.Time, log *slog.Logger) {
	alarm := false
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticks:
		}
		c := r.Calibration()
		if c.Alarm == alarm {
			continue
		}
		var args []any
		for name, excess := range map[string]float64{"ttft_excess": c.TTFTExcess, "tps_excess": c.TPSExcess} {
			if !math.IsNaN(excess) {
				args = append(args, slog.Float64(name, excess))
			}
		}
		if alarm = c.Alarm; !alarm {
			log.WarnContext(ctx, "predictions come true again as often as promised", args...)
			continue
		}
		if id, times := worst(r.Hosts()); id != "" {
			args = append(args, "furthest_off", id, "times_as_slow", times)
		}
		log.WarnContext(ctx, "fewer requests keep their slo than the router expects: hosts are slower than predicted (/admin/v1/calibration)", args...)
	}
}

// worst is the host that is slowest against what is predicted of it, and how many times as slow; "" when none is slower.
func worst(hosts []router.HostView) (id string, times float64) {
	times = 1
	for i := range hosts {
		for _, ratio := range []*float64{hosts[i].Calibration.TTFT, hosts[i].Calibration.ITL} {
			if ratio != nil && *ratio > times {
				id, times = string(hosts[i].ID), *ratio
			}
		}
	}
	return id, times
}
