package main

import (
	"fmt"
	"net/http"
	"strings"
	"testing"

	"headrace/providers/fakecloud"
)

const explainArmYAML = `
listen: "127.0.0.1:0"
admin: "127.0.0.1:0"
ledger: {path: "off"}
providers:
  static:
    - {name: base, base_url: "%s/v1", models: [m-base], price: {usd_per_hour: 2}}
    - {name: awq, base_url: "%s/v1", models: [m-awq], price: {usd_per_hour: 1}}
models: {m: {serves: [m-base, m-awq]}}
experiments:
  - {name: e, model: m, assign_by: user, arms: {control: {hosts: {served: m-base}}, canary: {hosts: {served: m-awq}}}, steps: [50%%, 100%%]}
`

// TestExplainArm tells to whose hosts a request is kept where an experiment is on its model, and of which arm one was.
func TestExplainArm(t *testing.T) {
	t.Parallel()
	base := startHost(t, fakecloud.HostConfig{Name: "base", Models: []string{"m-base"}})
	awq := startHost(t, fakecloud.HostConfig{Name: "awq", Models: []string{"m-awq"}})
	r := startApp(t, t.TempDir(), fmt.Sprintf(explainArmYAML, base.URL(), awq.URL()), nil)
	addr := r.app.admin.Addr().String()
	eventually(t, "both hosts are known", func() bool { return standing(t, r, "e").Problem == "" })
	host := map[string]string{"control": "static:base", "canary": "static:awq"}
	users := map[string]string{} // one of each arm
	for i := 0; len(users) < 2; i++ {
		user := fmt.Sprint("user-", i)
		arm, _ := r.app.trying.Table().Of("m")[0].Assign([]byte(user))
		users[arm.Name] = user
	}
	for arm, user := range users {
		for _, flags := range [][]string{{"--unit", user}, {"--arm", "e=" + arm}} {
			out, code, err := explained(t, append([]string{"--admin", addr, "--model", "m"}, flags...)...)
			if err != nil || code != 0 || !strings.Contains(out, "It would go to "+host[arm]) || !strings.Contains(out, "hosts of e/"+arm) {
				t.Errorf("%v: code %d, %v\n%s", flags, code, err, out)
			}
		}
		res, err := http.Post(r.base+"/v1/chat/completions", "application/json", strings.NewReader(fmt.Sprintf(`{"model":"m","user":%q,"max_tokens":2,"messages":[{"role":"user","content":"hi"}]}`, user)))
		if err != nil {
			t.Fatal(err)
		}
		_ = res.Body.Close()
		id := res.Header.Get("X-Request-Id")
		eventually(t, "the request is settled", func() bool {
			out, _, err := explained(t, "--admin", addr, id)
			return err == nil && strings.Contains(out, "It was of the arm e/"+arm+".") && strings.Contains(out, "hosts of e/"+arm)
		})
	}
	if out, _, err := explained(t, "--admin", addr, "--model", "m"); err != nil || !strings.Contains(out, "It would go to static:base") {
		t.Errorf("without a unit: %v\n%s", err, out)
	}
	for _, arm := range []string{"e=other", "f=canary", "canary"} {
		if _, code, err := explained(t, "--admin", addr, "--model", "m", "--arm", arm); err == nil || code != 2 {
			t.Errorf("--arm %s: code %d, %v", arm, code, err)
		}
	}
}
