package e2e_test

import (
	"context"
	"fmt"
	"maps"
	"math"
	"net/http"
	"slices"
	"strings"
	"testing"

	"headrace/providers/fakecloud/fakevast"
)

var vastChecks = []string{
	"show_user", "show_instances", "show_instances_v1", "show_instances_filtered", "show_instances_by_what_is_computed", "show_instances_of_old",
	"show_instance", "show_instance_filters", "search_offers", "search_offers_rows", "search_offers_order", "search_offers_limit",
	"search_offers_bid", "search_offers_new", "label_instance", "change_bid", "create_instance", "create_instance_refused", "stop_and_start",
	"stop_and_start_many", "start_without_a_gpu", "reboot_and_recycle", "logs", "price_increases", "charges", "destroy_instance",
	"destroy_instances", "wrong_key", "no_key", "too_many", "sync_client", "async_client", "serverless", "cli_show_instances",
	"cli_show_instances_table", "cli_show_instance", "cli_search_offers", "cli_label_and_bid", "cli_destroy", "cli_wrong_key",
}

// vastPlan is what a client of Vast.ai is told. Its JSON is what the script reads.
type vastPlan struct {
	URL       string         `json:"url"`
	Key       string         `json:"key"`
	User      int64          `json:"user"`
	Credit    float64        `json:"credit"` // USD
	Instances []vastInstance `json:"instances"`
	Offers    []vastOffer    `json:"offers"`
	Spare     map[string]any `json:"spare"`    // ids of instances, by what a check does with them
	Increase  float64        `json:"increase"` // USD per hour that the host of "accept" wants

	Serverless vastServerless `json:"serverless"`
	Ask        question       `json:"ask"` // to its worker
}

// vastServerless is an endpoint in an account of its own: its worker is no row among those of Instances.
type vastServerless struct {
	URL    string `json:"url"`
	RunURL string `json:"run_url"`
	Name   string `json:"name"`
}

// vastInstance is what the client must show of an instance.
type vastInstance struct {
	ID           int64   `json:"id"`
	Label        string  `json:"label"`
	GPUName      string  `json:"gpu_name"`
	NumGPUs      int     `json:"num_gpus"`
	IsBid        bool    `json:"is_bid"`
	DPHBase      float64 `json:"dph_base"`
	Verification string  `json:"verification"`
}

// vastOffer is what the client must find.
type vastOffer struct {
	ID           int64   `json:"id"`
	GPUName      string  `json:"gpu_name"`
	NumGPUs      int     `json:"num_gpus"`
	GPURAM       int     `json:"gpu_ram"` // MB
	DPHBase      float64 `json:"dph_base"`
	MinBid       float64 `json:"min_bid"`
	Storage      float64 `json:"storage"` // USD per hour for 10 GB
	Verification string  `json:"verification"`
	Geolocation  string  `json:"geolocation"`
}

const firstInstance = 1000

// vastClient starts a Vast.ai with 60 instances and some offers, and runs s at it.
func vastClient(t *testing.T, s script) {
	s.installed(t)
	start := func() *fakevast.Cloud {
		c, err := fakevast.Start(context.Background(), fakevast.Config{Seed: 1}) //nolint:usetesting // stopped by the cleanup
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(c.Stop)
		return c
	}
	c, serverless := start(), start()
	p := vastPlan{
		URL: c.ConsoleURL(), Key: "vast-key", User: 1001, Credit: 25, Increase: 0.777,
		Serverless: vastServerless{URL: serverless.ConsoleURL(), RunURL: serverless.RunURL(), Name: "vendors"},
		Ask:        tell(vendorModel, vendorModel, "Why do mills have a headrace? 🦊", 48),
	}
	for n := range 60 {
		k := vastInstance{ID: firstInstance + int64(n), GPUName: "RTX 4090", NumGPUs: 1 + n%2, IsBid: n%3 == 0, DPHBase: 0.3 + float64(n)/100, Verification: "verified"}
		k.DPHBase = math.Round(k.DPHBase*100) / 100
		if n%4 == 0 {
			k.Label = "gw"
		}
		if n%5 == 0 {
			k.GPUName, k.Verification = "A100 SXM4", "unverified"
		}
		c.AddInstance(fakevast.InstanceConfig{
			ID: k.ID, Label: k.Label, GPUName: k.GPUName, NumGPUs: k.NumGPUs, IsBid: k.IsBid, DPHBase: k.DPHBase, Verification: k.Verification,
		})
		p.Instances = append(p.Instances, k)
	}
	for n, k := range []vastOffer{
		{GPUName: "RTX 4090", NumGPUs: 1, GPURAM: 24564, DPHBase: 0.45, Geolocation: "California, US"},
		{GPUName: "RTX 4090", NumGPUs: 1, GPURAM: 24564, DPHBase: 0.35, Geolocation: "Sweden, SE"},
		{GPUName: "RTX 4090", NumGPUs: 4, GPURAM: 24564, DPHBase: 1.60, Geolocation: "California, US"},
		{GPUName: "A100 SXM4", NumGPUs: 1, GPURAM: 81920, DPHBase: 0.99, Geolocation: "Sweden, SE"},
		{GPUName: "A100 SXM4", NumGPUs: 8, GPURAM: 81920, DPHBase: 7.20, Geolocation: "Texas, US"},
		{GPUName: "H100 SXM", NumGPUs: 1, GPURAM: 81559, DPHBase: 1.90, Geolocation: "Norway, NO"},
		{GPUName: "RTX 3090", NumGPUs: 2, GPURAM: 24576, DPHBase: 0.30, Geolocation: "Spain, ES", Verification: "unverified"},
	} {
		if k.Verification == "" {
			k.Verification = "verified"
		}
		k.MinBid, k.Storage = k.DPHBase/2, 0.15*10/720
		k.ID = c.AddOffer(fakevast.InstanceConfig{
			GPUName: k.GPUName, NumGPUs: k.NumGPUs, GPURAMMB: k.GPURAM, DPHBase: k.DPHBase, MinBid: k.MinBid, StorageCost: 0.15,
			Verification: k.Verification, Geolocation: k.Geolocation, Machine: int64(500 + n), Boot: &fakevast.Boot{},
		})
		p.Offers = append(p.Offers, k)
	}
	serverless.AddServerless(fakevast.ServerlessConfig{
		Name: p.Serverless.Name, Ready: 1, MaxWorkers: 1, TLS: true, Certificate: fakevast.SignedWithIP,
		Worker: fakevast.InstanceConfig{Models: []string{vendorModel}},
	})
	at := func(n int) int64 { return firstInstance + int64(n) }
	// 51 and 57 are interruptible, no one of these has the label "gw"
	p.Spare = map[string]any{
		"label": at(1), "bid": at(51), "on_demand": at(2), "stop": at(5), "many": []int64{at(6), at(7)}, "queued": at(9), "reboot": at(10),
		"accept": at(11), "reject": at(13), "destroy": at(14), "destroy_many": []int64{at(15), at(17)}, "cli": at(57),
		"destroyed": []int64{at(14), at(15), at(17)},
	}
	c.Instance(at(9)).SetStart(fakevast.StartUnavailable)
	c.Instance(at(11)).WantMore(p.Increase)
	c.Instance(at(13)).WantMore(p.Increase)
	c.SetTroubles(fakevast.Trouble{Kind: fakevast.TooMany, Call: "GET /api/v0/metrics/gpu/current/"})

	s.run(t, p, vastChecks, func(t *testing.T, check string) {
		t.Helper()
		switch check {
		case "label_instance":
			if got := c.Instance(at(1)).Config().Label; got != "" {
				t.Errorf("label %q", got)
			}
		case "price_increases":
			if got := c.Instance(at(11)).Config().DPHBase; got != p.Increase {
				t.Errorf("price %v", got)
			}
		case "destroy_instances":
			for _, n := range []int{14, 15, 17} {
				if c.Instance(at(n)) != nil {
					t.Errorf("instance %d is still there", at(n))
				}
			}
		case "too_many":
			if got := c.Stats().Calls["GET /api/v0/metrics/gpu/current/"]; got != 3 {
				t.Errorf("%d calls", got)
			}
		}
	})
	if t.Failed() {
		return
	}
	// The client asked for nothing that the fake does not know, and it was the client that asked.
	agents := map[string]bool{}
	for _, r := range c.Requests() {
		if r.Call == "?" {
			t.Errorf("the fake does not know %s %s", r.Method, r.Path)
		}
		name, _, _ := strings.Cut(r.Header.Get("User-Agent"), "/")
		agents[name] = true
		if r.Status >= http.StatusInternalServerError {
			t.Errorf("%s %s: %d", r.Method, r.Path, r.Status)
		}
	}
	for _, want := range []string{"vastai-sdk", "vastai-cli"} {
		if !agents[want] {
			t.Errorf("no call by %s: %s", want, fmt.Sprint(slices.Sorted(maps.Keys(agents))))
		}
	}
}
