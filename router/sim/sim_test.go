package sim

import (
	"flag"
	"strings"
	"testing"
)

var (
	onlyScenarios = flag.String("scenarios", "S1", "scenarios to print, by comma")
	onlyPolicies  = flag.String("policies", Brain+","+Oracle+",least-connections,spill-0.35", "policies to print, by comma; all for all")
	seeds         = flag.Int("seeds", 1, "seeds")
)

func TestPrint(t *testing.T) {
	for _, name := range strings.Split(*onlyScenarios, ",") {
		sc, ok := ScenarioNamed(name)
		if !ok {
			t.Fatal(name)
		}
		t.Logf("== %s: %s", sc.Name, sc.Title)
		t.Logf("%-18s %7s %7s %8s %8s %6s %6s %6s %6s %6s %6s %6s %6s %6s %7s", "policy", "$", "meter$", "$/Mtok", "$/MtokOK", "SLO%", "fail%", "shed%", "TT50", "TT95", "TT99", "tps50", "tps05", "metr%", "$/fluid")
		for _, p := range Policies() {
			if *onlyPolicies != "all" && !strings.Contains(","+*onlyPolicies+",", ","+p.Name+",") {
				continue
			}
			for seed := 1; seed <= *seeds; seed++ {
				r := Run(sc, p, uint64(seed))
				t.Logf("%-18s %7.1f %7.1f %8.3f %8.3f %6.2f %6.3f %6.2f %6.2f %6.2f %6.1f %6.1f %6.1f %6.1f %7.2f n=%d", p.Name, r.USD, r.MeterUSD, r.USDPerMTok, r.USDPerMTokSLO, r.SLO*100, r.Failed*100, r.Shed*100,
					r.TTFTp50, r.TTFTp95, r.TTFTp99, r.TPSp50, r.TPSp05, r.Metered*100, Figure(r.USD)/r.FluidUSD, r.Requests)
				if testing.Verbose() && p.Name == Brain {
					for _, h := range r.Hosts {
						t.Logf("   %-10s n=%d $%.1f busy %.2f inflight %.1f pre %d sureTTFT %.3f/%.3f sureTPS %.3f/%.3f biasT %.2f biasS %.2f", h.Name, h.Attempts, h.USD, h.Busy, h.InFlight, h.Preemptions, h.TTFT.Sure.Expected, h.TTFT.Sure.Realised, h.TPS.Sure.Expected, h.TPS.Sure.Realised, h.TTFTBias, h.TPSBias)
					}
					t.Log(r.Classes)
				}
			}
		}
	}
}
