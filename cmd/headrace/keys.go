package main

import (
	"headrace/gateway/admission"
	"headrace/gateway/config"
)

// keysOf returns the keys of the config as the gate knows them.
func keysOf(c *config.Config) []admission.Key {
	keys := make([]admission.Key, 0, len(c.Keys))
	for i := range c.Keys {
		k := &c.Keys[i]
		hash, ok := admission.ParseHash(k.SHA256)
		if !ok {
			hash = admission.HashOf(k.Key.Reveal())
		}
		keys = append(keys, admission.Key{
			Name: k.Name, Hash: hash, Note: k.Note, Expires: k.ExpiresAt, Off: k.Disabled,
			Models: k.Models, Policies: k.Policies, Experiments: k.Experiments, Trust: k.Trust, Regions: k.Regions, Passthrough: k.Passthrough,
			RPM: int64(k.RPM), TPM: int64(k.TPM), Concurrency: int64(k.Concurrency),
			Budget:   admission.Budget{USDPerDay: k.Budget.USDPerDay, USDPerMonth: k.Budget.USDPerMonth, USDTotal: k.Budget.USDTotal, Soft: k.Budget.Soft},
			Priority: k.Priority, Weight: k.Weight, Admin: k.Admin,
		})
	}
	return keys
}
