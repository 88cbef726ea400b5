package fakevast

import (
	"encoding/json"
	"maps"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"
)

// hoursPerMonth turns a price of storage per month into one per hour: 720, by the service's own example.
const hoursPerMonth = 720

func (i *Instance) has(h Hazard) bool { return (i.hazards|i.c.cfg.Hazards)&h != 0 }

// keys are the stored columns, by which rows are found. The caller holds c.mu.
func (i *Instance) keys() map[string]any {
	k := &i.cfg
	return map[string]any{
		"id": k.ID, "label": orNull(k.Label), "actual_status": orNull(i.stored()), "intended_status": orNull(i.v.intended),
		"cur_state": orNull(i.v.cur), "next_state": orNull(i.v.next), "gpu_name": k.GPUName, "verification": k.Verification,
		"machine_id": k.Machine, "host_id": k.HostOwner, "is_bid": k.IsBid, "image_uuid": k.Image, "template_id": nil,
		"template_hash_id": orNull(k.TemplateHash), "template_name": orNull(k.TemplateName), "start_date": unix(i.started),
		"end_date": unix(k.EndDate), "geolocation": i.place(), "disk_space": k.DiskGB, "static_ip": k.StaticIP,
	}
}

func orNull(s string) any {
	if s == "" {
		return nil
	}
	return s
}

func unix(t time.Time) float64 { return math.Round(float64(t.UnixNano())/1e8) / 10 }

func (i *Instance) place() any {
	if i.cfg.Geolocation == "-" {
		return nil
	}
	return i.cfg.Geolocation
}

// storageUSDPerHour is what the disk costs.
func (i *Instance) storageUSDPerHour() float64 {
	return i.cfg.StorageCost * i.cfg.DiskGB / hoursPerMonth
}

// row is the instance as the list shows it, or as the answer by id does. The caller holds c.mu.
func (i *Instance) row(now time.Time, list bool) map[string]any {
	k, v := &i.cfg, &i.v
	storage := i.storageUSDPerHour()
	total := k.DPHBase + storage
	running := v.actual == "running"
	prices := func(gpu float64) map[string]any {
		return map[string]any{
			"gpuCostPerHour": gpu, "diskHour": storage, "totalHour": gpu + storage, "discountTotalHour": k.Discount,
			"discountedTotalPerHour": gpu + storage - k.Discount,
		}
	}
	accrues := 0.0
	if v.gpu {
		accrues = k.DPHBase
	}
	row := i.keys()
	maps.Copy(row, map[string]any{
		"bundle_id": 617, "actual_status": orNull(i.word()), "status_msg": orNull(v.msg), "image_runtype": "args",
		"image_args": slices.Clone(k.Args), "onstart": nil, "extra_env": i.extraEnv(), "jupyter_token": i.token,
		"public_ipaddr": i.publicIP(), "local_ipaddrs": "10.0.0.5 172.17.0.2 \n", "ports": i.ports(list),
		"direct_port_count": 100, "direct_port_start": -1, "direct_port_end": -1,
		"ssh_host": "ssh4.vast.ai", "ssh_idx": "4", "ssh_port": 10000 + k.ID%50000, "machine_dir_ssh_port": 51199,
		"num_gpus": k.NumGPUs, "gpu_ram": k.GPURAMMB, "gpu_totalram": k.GPURAMMB * k.NumGPUs, "gpu_frac": 0.25,
		"gpu_util": nil, "gpu_temp": nil, "dlperf": 106.6, "total_flops": 82.9, "compute_cap": 890, "cuda_max_good": 12.8,
		"cpu_cores_effective": 24.0, "cpu_ram": 64393, "mem_limit": 15.7, "mem_usage": 9.1, "vmem_usage": 21.0,
		"disk_usage": -1, "disk_util": -1, "inet_up": 900.0, "inet_down": 800.0,
		"inet_up_cost": k.UpPerTB / 1024, "inet_down_cost": k.DownPerTB / 1024, "inet_up_billed": 12.0, "inet_down_billed": 20481.0,
		"internet_up_cost_per_tb": k.UpPerTB, "internet_down_cost_per_tb": k.DownPerTB,
		"min_bid": k.MinBid, "dph_base": k.DPHBase, "dph_total": total, "storage_cost": k.StorageCost, "storage_total_cost": storage,
		"search": prices(k.DPHBase), "instance": prices(accrues),
		"reliability2": k.Reliability, "rentable": true, "hosting_type": k.HostingType, "country_code": nil,
		"duration": i.started.Sub(k.EndDate).Seconds(), "uptime_mins": nil,
		"time_remaining": strconv.Itoa(int(k.EndDate.Sub(now).Hours()/24)) + " D", "time_remaining_isbid": "", "credit_discount": nil,
		"volume_info": []any{},
	})
	if running {
		row["disk_usage"] = 31.2
	}
	if (running || i.has(StaleUtil)) && !i.has(NullUtil) {
		row["gpu_util"], row["gpu_temp"] = 88.0, 61.0
	}
	if k.Label == "" && !i.has(NullLabel) {
		row["label"] = ""
	}
	if len(k.Args) == 0 {
		row["image_args"] = []string{}
	}
	return row
}

// word is the status as it is shown: offline is computed.
func (i *Instance) word() string {
	if i.v.offline {
		return "offline"
	}
	return i.stored()
}

// stored is the status as rows are found by it.
func (i *Instance) stored() string {
	v := &i.v
	if i.has(NewStates) && (v.actual == "loading" || v.actual == "exited" && v.cur == "running") {
		return "restarting"
	}
	return v.actual
}

func (i *Instance) publicIP() any {
	if i.v.ip == "" {
		return nil
	}
	if i.has(IPNewline) {
		return " " + i.v.ip + "\n"
	}
	return i.v.ip
}

// extraEnv lists the environment as pairs; ports that were asked for sit in it.
func (i *Instance) extraEnv() [][2]string {
	k := &i.cfg
	pairs := [][2]string{}
	for _, name := range slices.Sorted(maps.Keys(k.Env)) {
		pairs = append(pairs, [2]string{name, k.Env[name]})
	}
	if !k.NoPortInEnv {
		for _, p := range append([]int{k.ContainerPort}, k.OtherPorts...) {
			pairs = append(pairs, [2]string{"-p " + strconv.Itoa(p) + ":" + strconv.Itoa(p), "1"})
		}
	}
	return pairs
}

type mapping struct {
	HostIP   string `json:"HostIp"`
	HostPort string `json:"HostPort"`
}

// ports are in the shape of docker inspect, or in one of the others that were seen.
func (i *Instance) ports(list bool) any {
	switch {
	case i.has(PortsNull), i.has(ListPortsNull) && list:
		return nil
	case i.has(PortsEmptyList):
		return []int{}
	case !i.v.mapped:
		return nil
	case i.has(PortsList), i.has(ByIDPortsList) && !list:
		return []int{i.v.port}
	}
	at := func(port int) []mapping {
		v4, v6 := mapping{"0.0.0.0", strconv.Itoa(port)}, mapping{"::", strconv.Itoa(port)}
		switch {
		case i.has(IPv6Only):
			return []mapping{v6}
		case i.has(IPv6Twin):
			return []mapping{v6, v4}
		}
		return []mapping{v4}
	}
	m := map[string][]mapping{strconv.Itoa(i.cfg.ContainerPort) + "/tcp": at(i.v.port)}
	for _, p := range i.cfg.OtherPorts {
		m[strconv.Itoa(p)+"/tcp"] = at(1) // nobody listens at port 1
	}
	return m
}

// dress makes a row odd in the ways that its hazards say.
func (i *Instance) dress(row map[string]any) map[string]any {
	i.figures(row)
	if i.has(StringNumbers) {
		for name, v := range row {
			if f, ok := v.(float64); ok && (strings.HasPrefix(name, "dph") || strings.HasSuffix(name, "cost")) {
				row[name] = strconv.FormatFloat(f, 'f', -1, 64)
			}
		}
	}
	if i.has(ExtraFields) {
		row["entirely_new"] = map[string]any{"of": []any{1, "two", nil}}
	}
	return row
}

// figures writes numbers as Python does, with a fraction for each float, or as the hazards say.
func (i *Instance) figures(row map[string]any) {
	for name, v := range row {
		switch v := v.(type) {
		case map[string]any:
			i.figures(v)
		case float64:
			if v == math.Trunc(v) && math.Abs(v) < 1e15 && !i.has(IntFloats) {
				row[name] = json.Number(strconv.FormatFloat(v, 'f', 1, 64))
			}
		case int:
			if i.has(FloatInts) {
				row[name] = json.Number(strconv.Itoa(v) + ".0")
			}
		}
	}
}
