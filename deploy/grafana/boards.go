package grafana

import "fmt"

// Dashboards returns all pages, the overview first.
func Dashboards() []Dashboard {
	return []Dashboard{fleet(), promises(), host(), experiments(), gateway()}
}

// host link of tables.
const hostPage = "/d/headrace-host?${datasource:queryparam}&var-endpoint=${__value.raw}&${__url_time_range}"

// rate is events per second of a counter, summed by labels.
func rate(metric, matchers, by string) string {
	return fmt.Sprintf("sum by (%s) (rate(%s{%s}[$__rate_interval]))", by, metric, matchers)
}

// quantile reads a histogram; by may be empty.
func quantile(q float64, metric, matchers, by string) string {
	if by != "" {
		by = ", " + by
	}
	return fmt.Sprintf("histogram_quantile(%g, sum by (le%s) (rate(%s_bucket{%s}[$__rate_interval])))", q, by, metric, matchers)
}

// perHost is a gauge of hosts, which every replica shows alike.
func perHost(metric, matchers string) string {
	return fmt.Sprintf("max by (headrace_endpoint, headrace_provider) (%s{%s})", metric, matchers)
}

func fleet() Dashboard {
	const hosts = `headrace_provider=~"$provider"`
	const of = hosts + `, headrace_model=~"$model"`
	return dashboard("fleet", "fleet and money", "What the rented hosts cost, what comes of it, and what is wasted.", "6h",
		[]Variable{
			choice("provider", "Provider", "headrace_host_state", "headrace_provider", true),
			choice("model", "Model", "headrace_requests_total", "headrace_model", true),
		},
		section{"Now", []Panel{
			figure("Rent", "currencyUSD", "US dollars an hour of all hosts that are up, busy or not.",
				`sum(headrace:rent_usd_per_hour{headrace_provider=~"$provider"})`),
			figure("Spent on requests", "currencyUSD", "US dollars an hour, mean of the last hour: the shares of bills that requests are charged with.",
				`sum(headrace:spend_usd_per_hour:rate1h{headrace_model=~"$model"})`),
			figure("Price of a million tokens", "currencyUSD", "US dollars per million output tokens that reached their callers, mean of the last hour.",
				`1e6 * sum(rate(headrace_spend_usd_total{`+of+`}[1h])) / sum(rate(headrace_tokens_total{`+of+`, headrace_use="useful"}[1h]))`),
			figure("Wasted", "percentunit", "Share of the money that went into answers that nobody got, last hour.",
				`(sum(rate(headrace_spend_usd_total{`+of+`, headrace_use="wasted"}[1h])) or vector(0)) / sum(rate(headrace_spend_usd_total{`+of+`}[1h]))`,
				step{0.05, "orange"}, step{0.1, "red"}),
			figure("Hosts that are up", "none", "Of all replicas' views, the best.",
				`count(max by (headrace_endpoint) (headrace_host_state{`+hosts+`, headrace_state=~"ready|saturated"}) == 1)`),
			figure("Tokens", "suffix: tok/s", "Output tokens per second that reached their callers.",
				`sum(rate(headrace_tokens_total{`+of+`, headrace_use="useful"}[$__rate_interval]))`),
		}},
		section{"Hosts", []Panel{
			table("Hosts", "A click on a host shows it alone.", [][2]string{{"headrace_endpoint", "Host"}, {"headrace_provider", "Provider"}}, hostPage,
				column{"$/h", "currencyUSD", perHost("headrace_host_usd_per_hour", hosts)},
				column{"$/Mtok full", "currencyUSD", perHost("headrace_host_usd_per_mtok", hosts+`, headrace_figure="full_load"`)},
				column{"$/Mtok one stream", "currencyUSD", perHost("headrace_host_usd_per_mtok", hosts+`, headrace_figure="one_stream"`)},
				column{"$/Mtok realised", "currencyUSD", perHost("headrace_host_usd_per_mtok", hosts+`, headrace_figure="allocated"`)},
				column{"Streams", "none", fmt.Sprintf("sum by (headrace_endpoint, headrace_provider) (headrace_host_in_flight{%s})", hosts)},
				column{"Room", "none", perHost("headrace_host_concurrency", hosts+`, headrace_figure="safe"`)},
				column{"TPS", "suffix: tok/s", perHost("headrace_host_tps", hosts)},
				column{"TTFT", "s", perHost("headrace_host_ttft_seconds", hosts)},
				column{"Losses a day", "none", perHost("headrace_host_losses_per_day", hosts)},
				column{"Up", "bool_yes_no", perHost("headrace_host_state", hosts+`, headrace_state="ready"`)},
			),
			stacked("States", "none", "Hosts by what their provider reports.",
				query{`sum by (headrace_state) (max by (headrace_endpoint, headrace_state) (headrace_host_state{` + hosts + `}))`, "{{headrace_state}}"}),
			lines("Price at full load", "currencyUSD", "US dollars per million output tokens, by which hosts are compared.",
				query{perHost("headrace_host_usd_per_mtok", hosts+`, headrace_figure="full_load"`), "{{headrace_endpoint}}"}).logarithmic(),
			lines("Price realised", "currencyUSD", "US dollars per million output tokens, of what was charged to requests. Idle hosts are dear.",
				query{perHost("headrace_host_usd_per_mtok", hosts+`, headrace_figure="allocated"`), "{{headrace_endpoint}}"}).logarithmic(),
			lines("Hosts that failed", "none", "Breakers that opened, or whose host was taken away, in an hour.",
				query{`max by (headrace_endpoint) (sum by (instance, headrace_endpoint) (increase(headrace_host_breaker_transitions_total{` + hosts + `, headrace_from="closed", headrace_to=~"open|preempted"}[1h])))`, "{{headrace_endpoint}}"}),
			lines("Cold starts", "none", "Attempts in an hour that a worker had to be started for.",
				query{`sum by (headrace_endpoint) (increase(headrace_cold_starts_total{` + of + `}[1h]))`, "{{headrace_endpoint}}"}),
			lines("Cold start, median", "s", "From the attempt's begin to its first token.",
				query{`histogram_quantile(0.5, sum by (le, headrace_endpoint) (rate(headrace_cold_start_duration_seconds_bucket{` + hosts + `}[1h])))`, "{{headrace_endpoint}}"}),
		}},
		section{"Money", []Panel{
			stacked("Spent, by provider", "currencyUSD", "US dollars an hour.",
				query{"3600 * " + rate("headrace_spend_usd_total", of, "headrace_provider"), "{{headrace_provider}}"}),
			stacked("Spent, by model", "currencyUSD", "US dollars an hour.",
				query{"3600 * " + rate("headrace_spend_usd_total", of, "headrace_model"), "{{headrace_model}}"}),
			lines("Price of a million tokens, by model", "currencyUSD", "US dollars per million output tokens that reached their callers, mean of an hour.",
				query{`headrace:usd_per_mtok:rate1h{headrace_model=~"$model"}`, "{{headrace_model}}"}),
			stacked("Wasted, by reason", "currencyUSD", "US dollars an hour. The reason is how the attempt ended (docs/errors.md).",
				query{"3600 * " + rate("headrace_spend_usd_total", of+`, headrace_use="wasted"`, "headrace_reason"), "{{headrace_reason}}"}),
			stacked("Tokens", "suffix: tok/s", "Output tokens per second that hosts produced.",
				query{rate("headrace_tokens_total", of, "headrace_use"), "{{headrace_use}}"}),
			lines("Rent and what is charged", "currencyUSD", "US dollars an hour. The gap is what hosts cost while they have nothing to do.",
				query{`sum(headrace:rent_usd_per_hour{headrace_provider=~"$provider"})`, "rent"},
				query{`sum(headrace:spend_usd_per_hour:rate1h{headrace_model=~"$model"})`, "charged to requests"}),
			lines("Bills and the ledger", "currencyUSD", "The newest bill of each account, and what the ledger has of the same hosts and time (docs/costs.md).",
				query{`max by (headrace_account, headrace_figure) (headrace_ledger_bill_usd)`, "{{headrace_account}} {{headrace_figure}}"}),
			lines("The ledger off the bill", "percentunit", "Above 0 the ledger has more than was billed.",
				query{`max by (headrace_account) (headrace_ledger_bill_error_ratio)`, "{{headrace_account}}"}),
		}},
	)
}

func promises() Dashboard {
	const of = `headrace_model=~"$model"`
	const seen = `gen_ai_request_model=~"$model"`
	return dashboard("slo", "latency and promises", "What callers see: time to the first token, speed, errors, and the share of promises kept.", "3h",
		[]Variable{choice("model", "Model", "headrace_requests_total", "headrace_model", true)},
		section{"Now", []Panel{
			figure("Requests", "reqps", "Per second.", `sum(rate(headrace_requests_total{`+of+`}[$__rate_interval]))`),
			figure("Failed", "percentunit", "By no fault of their callers.",
				`(sum(headrace:requests_failed:rate5m{`+of+`}) or vector(0)) / sum(headrace:requests:rate5m{`+of+`})`, step{0.01, "orange"}, step{0.05, "red"}),
			figure("TTFT, median", "s", "", quantile(0.5, "gen_ai_server_time_to_first_token_seconds", seen, "")),
			figure("TTFT, p95", "s", "", quantile(0.95, "gen_ai_server_time_to_first_token_seconds", seen, ""), step{2, "orange"}, step{5, "red"}),
			figure("TPS, median", "suffix: tok/s", "Tokens per second of one stream after its first token.",
				"1 / "+quantile(0.5, "gen_ai_server_time_per_output_token_seconds", seen, "")),
			figure("Promises kept", "percentunit", "Of both halves of the SLO, last hour.",
				`sum(rate(headrace_slo_requests_total{`+of+`, headrace_kept="true"}[1h])) / sum(rate(headrace_slo_requests_total{`+of+`}[1h]))`),
		}},
		section{"First token and speed", []Panel{
			heat("TTFT", "s", "Requests by their time to the first token. The dots lead to traces.",
				`sum by (le) (increase(gen_ai_server_time_to_first_token_seconds_bucket{`+seen+`}[$__rate_interval]))`).exemplars(),
			lines("TTFT, p95", "s", "Accepted to first token handed to the caller, retries and cold starts included.",
				query{quantile(0.95, "gen_ai_server_time_to_first_token_seconds", seen, "gen_ai_request_model"), "{{gen_ai_request_model}}"}).exemplars(),
			lines("TTFT, median", "s", "",
				query{quantile(0.5, "gen_ai_server_time_to_first_token_seconds", seen, "gen_ai_request_model"), "{{gen_ai_request_model}}"}),
			lines("TPS, slowest twentieth", "suffix: tok/s", "95 % of streams are faster.",
				query{"1 / " + quantile(0.95, "gen_ai_server_time_per_output_token_seconds", seen, "gen_ai_request_model"), "{{gen_ai_request_model}}"}),
			lines("TPS, median", "suffix: tok/s", "",
				query{"1 / " + quantile(0.5, "gen_ai_server_time_per_output_token_seconds", seen, "gen_ai_request_model"), "{{gen_ai_request_model}}"}),
			lines("Whole request, p95", "s", "Accepted to last byte.",
				query{quantile(0.95, "gen_ai_server_request_duration_seconds", seen, "gen_ai_request_model"), "{{gen_ai_request_model}}"}).exemplars(),
		}},
		section{"Promises", []Panel{
			lines("Broken, last hour", "percentunit", "Share of streams. Alerts: 30 % pages, 15 % over six hours is a ticket.",
				query{`headrace:slo_broken:ratio_rate1h{` + of + `}`, "{{headrace_model}} {{headrace_promise}}"}),
			lines("Broken, last five minutes", "percentunit", "",
				query{`headrace:slo_broken:ratio_rate5m{` + of + `}`, "{{headrace_model}} {{headrace_promise}}"}),
			lines("Kept beyond expectation", "percentunit", "Share of promises kept, of those expected to be, less the confidence. Below -3 % predictions are too good to be true.",
				query{`min by (headrace_promise) (headrace_calibration_excess_ratio)`, "{{headrace_promise}}"}).belowZero(),
		}},
		section{"How requests end", []Panel{
			stacked("Requests by outcome", "reqps", "docs/errors.md says what the words mean.",
				query{rate("headrace_requests_total", of, "headrace_class"), "{{headrace_class}}"}),
			stacked("Attempts by outcome", "reqps", "",
				query{rate("headrace_attempts_total", of, "headrace_class"), "{{headrace_class}}"}),
			stacked("Failovers", "reqps", "Further attempts, by how the one before ended.",
				query{rate("headrace_failovers_total", of, "headrace_class"), "{{headrace_class}}"}),
			stacked("Answers that broke off", "reqps", "Gone on with by another host, by text or by the numbers of tokens, or refused, with the reason (docs/continuation.md).",
				query{rate("headrace_continuations_total", of, "headrace_result, headrace_reason, headrace_goes_on_by"), "{{headrace_result}} {{headrace_reason}} {{headrace_goes_on_by}}"}),
			lines("Silence at a seam, p95", "s", "What callers wait for where another host goes on.",
				query{quantile(0.95, "headrace_continuation_gap_seconds", of, "headrace_model"), "{{headrace_model}}"}),
			stacked("Callers that left", "reqps", "",
				query{rate("headrace_client_cancels_total", of, "headrace_phase"), "{{headrace_phase}}"}),
			stacked("Second attempts beside a late one", "reqps", "",
				query{rate("headrace_hedges_total", of, "headrace_result"), "{{headrace_result}}"}),
		}},
	)
}

func host() Dashboard {
	const of = `headrace_endpoint="$endpoint"`
	one := func(metric, legend string) query {
		return query{fmt.Sprintf("max by (headrace_endpoint) (%s{%s})", metric, of), legend}
	}
	each := func(metric, label string) query {
		return query{fmt.Sprintf("max by (%s) (%s{%s})", label, metric, of), "{{" + label + "}}"}
	}
	return dashboard("host", "one host", "One rented host: state, speed, price, and how attempts there end.", "6h",
		[]Variable{choice("endpoint", "Host", "headrace_host_state", "headrace_endpoint", false)},
		section{"State", []Panel{
			bands("State by its provider", "", each("headrace_host_state", "headrace_state")),
			bands("Breaker", "docs/failover.md", each("headrace_host_breaker", "headrace_state")),
			figure("Drained by its operator", "bool_yes_no", "", one("headrace_host_drained", "").expr, step{1, "orange"}),
			figure("Workers", "none", "Of a serverless endpoint.", one("headrace_host_workers", "").expr),
			figure("Losses a day", "none", "How often it is expected to be taken away.", one("headrace_host_losses_per_day", "").expr),
			figure("Failed", "none", "Times in the last day that its breaker opened, or that it was taken away.",
				`max(sum by (instance) (increase(headrace_host_breaker_transitions_total{`+of+`, headrace_from="closed", headrace_to=~"open|preempted"}[1d])))`, step{1, "orange"}, step{20, "red"}),
			figure("Price read", "s", "Time since then.", one("headrace_host_price_age_seconds", "").expr, step{3600, "orange"}, step{21600, "red"}),
			figure("Continues answers", "none", "By its self-test.", `max by (headrace_state) (headrace_host_continues{`+of+`}) == 1`).named("{{headrace_state}}"),
			lines("Breaker's transitions", "none", "In ten minutes. Many from open to probing and back: it is away, and looked for. Many from probing to closed: it comes back and fails again.",
				query{`max by (headrace_from, headrace_to) (increase(headrace_host_breaker_transitions_total{` + of + `}[10m]))`, "{{headrace_from}} to {{headrace_to}}"}),
		}},
		section{"Load and speed", []Panel{
			lines("Streams", "none", "At the host, of all gateways, beside what it has room for.",
				query{`sum(headrace_host_in_flight{` + of + `})`, "in flight"},
				each("headrace_host_concurrency", "headrace_figure")),
			lines("TPS", "suffix: tok/s", "Mean of the newest streams, and what one stream alone is expected to get.",
				one("headrace_host_tps", "measured"),
				query{`1 / max by (headrace_endpoint) (headrace_host_itl_seconds{` + of + `})`, "alone, expected"}),
			lines("TTFT", "s", "Mean of the newest attempts.", one("headrace_host_ttft_seconds", "measured")),
			lines("Attempt, p95", "s", "From its begin to the last byte.",
				query{quantile(0.95, "gen_ai_client_operation_duration_seconds", of, "gen_ai_request_model"), "{{gen_ai_request_model}}"}).exemplars(),
			lines("Realised over predicted", "none", "1 is as predicted; itl 1.2 is a fifth slower.",
				each("headrace_calibration_ratio", "headrace_figure")),
			lines("Cold start, median", "s", "", query{quantile(0.5, "headrace_cold_start_duration_seconds", of, ""), "median"}),
		}},
		section{"Money", []Panel{
			lines("US dollars per million output tokens", "currencyUSD", "", each("headrace_host_usd_per_mtok", "headrace_figure")).logarithmic(),
			lines("Rent", "currencyUSD", "An hour, of it or of one of its workers while it runs.", one("headrace_host_usd_per_hour", "rent")),
			stacked("Charged to requests", "currencyUSD", "US dollars an hour.",
				query{"3600 * " + rate("headrace_spend_usd_total", of, "headrace_use, headrace_reason"), "{{headrace_use}} {{headrace_reason}}"}),
		}},
		section{"Attempts", []Panel{
			stacked("Attempts by outcome", "reqps", "docs/errors.md says what the words mean.", query{rate("headrace_attempts_total", of, "headrace_class"), "{{headrace_class}}"}),
			stacked("Tokens", "suffix: tok/s", "Output tokens per second.", query{rate("headrace_tokens_total", of, "headrace_use, headrace_reason"), "{{headrace_use}} {{headrace_reason}}"}),
			stacked("Probes", "none", "Synthetic requests in five minutes.", query{`sum by (headrace_result) (increase(headrace_probes_total{` + of + `}[5m]))`, "{{headrace_result}}"}),
		}},
	)
}

func experiments() Dashboard {
	const of = `headrace_experiment=~"$experiment"`
	const arm = "{{headrace_experiment}} {{headrace_arm}}"
	const arms = "headrace_experiment, headrace_arm"
	inState := func(words string) string {
		return `count(max by (headrace_experiment) (headrace_experiment_state{` + of + `, headrace_state=~"` + words + `"}) == 1) or vector(0)`
	}
	requests := func(result string) string {
		return `max by (` + arms + `) (headrace_experiment_requests{` + of + `, headrace_result="` + result + `"})`
	}
	share := func(result string) string { return requests(result) + ` / (` + requests("all") + ` > 0)` }
	against := func(title, description, figure string) Panel {
		p := lines(title, "percentunit", description, query{
			`max by (` + arms + `, headrace_bound) (headrace_experiment_effect_ratio{` + of + `, headrace_figure="` + figure + `"})`, arm + " {{headrace_bound}}",
		})
		delete(p.FieldConfig.Defaults, "min") // better than the control is below
		return p
	}
	return dashboard("experiments", "experiments", "Arms beside their control: who serves how much, what came of it, and what is proven. All replicas count together: figures are the largest of what they say.", "24h",
		[]Variable{choice("experiment", "Experiment", "headrace_experiment_state", "headrace_experiment", true)},
		section{"Now", []Panel{
			figure("Running", "none", "", inState("running")),
			figure("Wait for somebody", "none", "Paused or inconclusive: arms keep their shares until somebody decides.", inState("paused|inconclusive"), step{1, "orange"}),
			figure("Promoted", "none", "An arm was shown to keep every guardrail.", inState("promoted")),
			figure("Rolled back", "none", "Harm was proven; the control serves all.", inState("rolled_back"), step{1, "red"}),
			bands("States", "docs/experiments.md", query{`max by (headrace_experiment, headrace_state) (headrace_experiment_state{` + of + `})`, "{{headrace_experiment}} {{headrace_state}}"}),
		}},
		section{"Arms", []Panel{
			stacked("Share of units", "percentunit", "", query{`max by (` + arms + `) (headrace_experiment_share_ratio{` + of + `})`, arm}),
			lines("Units", "none", "That each arm has had, of those that are remembered.", query{`max by (` + arms + `) (headrace_experiment_units{` + of + `})`, arm}),
			lines("Requests", "none", "Counted in this run.", query{requests("all"), arm}),
			lines("A host failed", "percentunit", "Of an arm's requests, though another host may have answered.", query{share("failed"), arm}),
			lines("Served by others", "percentunit", "Of an arm's requests, by hosts that are not the arm's. Above a tenth it goes no further.", query{share("out_of_arm"), arm}),
			lines("Decisions", "none", "In an hour: steps, commands, roll-backs.", query{`max by (headrace_experiment) (increase(headrace_experiment_decisions_total{` + of + `}[1h]))`, "{{headrace_experiment}}"}),
		}},
		section{"Against the control", []Panel{
			against("Time to the first token", "Estimate, and the ends of its always-valid interval; above 0 is slower.", "ttft"),
			against("Tokens per second", "Likewise; below 0 is slower.", "tps"),
			against("Dollars per million tokens", "Likewise; above 0 is dearer.", "usd_per_mtok"),
			against("Failures", "Difference of the shares of requests; above 0 is worse, as in the next two.", "error_rate"),
			against("Promises broken", "", "slo_missed"),
			against("Answers broken off", "", "truncated"),
			against("Score", "What was told as feedback, such as an evaluation's; below 0 is worse.", "score"),
		}},
	)
}

func gateway() Dashboard {
	const of = `instance=~"$instance"`
	return dashboard("gateway", "the gateway itself", "Its own time, its accounts, its config and its telemetry.", "3h",
		[]Variable{choice("instance", "Gateway", "headrace_build", "instance", true)},
		section{"Now", []Panel{
			figure("Gateways", "none", "", `count(headrace_build{`+of+`})`),
			figure("Requests in flight", "none", "", `sum(http_server_active_requests{`+of+`})`),
			figure("Own time, p99", "s", "Of a request, up to its first token.", quantile(0.99, "headrace_gateway_overhead_seconds", of, ""), step{0.001, "orange"}, step{0.005, "red"}),
			figure("Draining", "none", "Gateways that take nothing new.", `sum(headrace_draining{`+of+`})`, step{1, "orange"}),
			figure("Configs refused", "none", "Gateways whose newest config has a mistake; the one before is in force.",
				`count(headrace_config_current{`+of+`} == 0) or vector(0)`, step{1, "red"}),
			figure("Predictions", "none", "Gateways whose hosts are slower than predicted by more than chance explains.", `sum(headrace_calibration_alarm{`+of+`})`, step{1, "orange"}),
		}},
		section{"Requests", []Panel{
			heat("Own time", "s", "Requests by the gateway's own time.", `sum by (le) (increase(headrace_gateway_overhead_seconds_bucket{`+of+`}[$__rate_interval]))`).exemplars(),
			lines("Own time", "s", "Reading, deciding, writing, up to the first token.",
				query{quantile(0.5, "headrace_gateway_overhead_seconds", of, ""), "median"},
				query{quantile(0.95, "headrace_gateway_overhead_seconds", of, ""), "p95"},
				query{quantile(0.99, "headrace_gateway_overhead_seconds", of, ""), "p99"}),
			lines("In flight", "none", "", query{`sum by (instance) (http_server_active_requests{` + of + `})`, "{{instance}}"}),
			stacked("Requests by route", "reqps", "", query{rate("http_server_request_duration_seconds_count", of, "http_route"), "{{http_route}}"}),
			stacked("Requests by status", "reqps", "", query{rate("http_server_request_duration_seconds_count", of, "http_response_status_code"), "{{http_response_status_code}}"}),
			stacked("Refused at the door", "reqps", "Unreadable heads, unknown paths, wrong methods, by the error's code.", query{rate("headrace_refusals_total", of, "headrace_reason"), "{{headrace_reason}}"}),
			stacked("Waiting for room", "none", "Requests, by model and priority; without a model, at the gateway's own door.",
				query{`sum by (headrace_model, headrace_priority) (headrace_queue_length{` + of + `})`, "{{headrace_model}} {{headrace_priority}}"}),
			lines("Waited for room, p95", "s", "Of requests that waited.", query{quantile(0.95, "headrace_queue_wait_seconds", of, "headrace_model, headrace_priority"), "{{headrace_model}} {{headrace_priority}}"}),
			stacked("Refused for want of room", "reqps", "By model and reason.", query{rate("headrace_queue_refusals_total", of, "headrace_model, headrace_reason"), "{{headrace_model}} {{headrace_reason}}"}),
			lines("Duration by route, p95", "s", "", query{quantile(0.95, "http_server_request_duration_seconds", of, "http_route"), "{{http_route}}"}),
		}},
		section{"Waiting for room", []Panel{
			lines("Wait", "s", "Of requests that waited, whatever came of it.",
				query{quantile(0.5, "headrace_queue_wait_seconds", of, ""), "median"},
				query{quantile(0.95, "headrace_queue_wait_seconds", of, ""), "p95"}),
			stacked("Waiting", "none", "", query{`sum by (headrace_model, headrace_priority) (headrace_queue_length{` + of + `})`, "{{headrace_model}} {{headrace_priority}}"}),
			stacked("Waited in vain", "reqps", "", query{rate("headrace_queue_refusals_total", of, "headrace_reason"), "{{headrace_reason}}"}),
		}},
		section{"Process", []Panel{
			lines("Processors in use", "none", "", query{`rate(process_cpu_seconds_total{` + of + `, job="headrace"}[$__rate_interval])`, "{{instance}}"}),
			lines("Memory", "bytes", "Resident, and the heap in it.",
				query{`process_resident_memory_bytes{` + of + `, job="headrace"}`, "{{instance}}"},
				query{`go_memstats_heap_inuse_bytes{` + of + `, job="headrace"}`, "{{instance}} heap"}),
			lines("Goroutines", "none", "One for each caller's connection, and some dozens.", query{`go_goroutines{` + of + `, job="headrace"}`, "{{instance}}"}),
			lines("Descriptors in use", "percentunit", "Of those allowed. A stream takes two.",
				query{`process_open_fds{` + of + `, job="headrace"} / process_max_fds{` + of + `, job="headrace"}`, "{{instance}}"}),
			lines("Stopped by the collector of garbage", "percentunit", "Share of time.", query{`rate(go_gc_duration_seconds_sum{` + of + `, job="headrace"}[$__rate_interval])`, "{{instance}}"}),
			lines("Up for", "s", "", query{`time() - process_start_time_seconds{` + of + `, job="headrace"}`, "{{instance}}"}),
		}},
		section{"Accounts", []Panel{
			lines("Hosts last read", "s", "Time since then. Meanwhile the last good list is in use.",
				query{`max by (headrace_account) (headrace_discovery_age_seconds{` + of + `})`, "{{headrace_account}}"}),
			lines("Polls failed in a row", "none", "", query{`max by (headrace_account) (headrace_discovery_failing{` + of + `})`, "{{headrace_account}}"}),
			lines("Hosts", "none", "", query{`max by (headrace_account) (headrace_discovery_hosts{` + of + `})`, "{{headrace_account}}"}),
			stacked("Calls to control planes", "reqps", "", query{rate("headrace_discovery_calls_total", of, "headrace_account, headrace_call"), "{{headrace_account}} {{headrace_call}}"}),
			stacked("Calls that failed", "reqps", "", query{rate("headrace_discovery_errors_total", of, "headrace_account, headrace_call, headrace_reason"), "{{headrace_account}} {{headrace_call}} {{headrace_reason}}"}),
			lines("Polls", "none", "In five minutes.", query{`sum by (headrace_account) (increase(headrace_discovery_polls_total{` + of + `}[5m]))`, "{{headrace_account}}"}),
		}},
		section{"Predictions", []Panel{
			lines("Promises kept, by how likely that was", "percentunit", "Last hour. A line near its name's figure is well predicted.",
				query{`sum by (headrace_promise, headrace_bin) (rate(headrace_calibration_promises_total{` + of + `, headrace_kept="true"}[1h])) / sum by (headrace_promise, headrace_bin) (rate(headrace_calibration_promises_total{` + of + `}[1h]))`, "{{headrace_promise}} {{headrace_bin}}"}).wide(24),
		}},
		section{"Replicas", []Panel{
			lines("Replicas that know of each other", "none", "As each of them counts; those that share no Redis have no line.", query{`headrace_replicas{` + of + `}`, "{{instance}}"}),
			lines("Redis answers", "none", "1 or 0. While it does not, each goes on by itself.", query{`headrace_redis_up{` + of + `}`, "{{instance}}"}),
			lines("Redis slow or gone", "reqps", "Calls that it did not answer, and those on the path of a request that were decided from memory instead.",
				query{`sum by (instance) (rate(headrace_redis_errors_total{` + of + `}[$__rate_interval]))`, "{{instance}} errors"},
				query{`sum by (instance) (rate(headrace_redis_fallbacks_total{` + of + `}[$__rate_interval]))`, "{{instance}} from memory"}),
			stacked("Hosts lost or back, told and heard", "reqps", "", query{rate("headrace_replicas_hosts_total", of, "headrace_result"), "{{headrace_result}}"}),
		}},
		section{"Keys", []Panel{
			stacked("Refused by their keys", "reqps", "For want of a key or a right, or by a key's limits and budgets. The log names the key.",
				query{rate("headrace_keys_refusals_total", of, "headrace_reason"), "{{headrace_reason}}"}),
			lines("Budgets nearly used", "none", "Times in an hour that a key has passed the soft share of one.", query{`sum by (instance) (increase(headrace_keys_budget_warnings_total{` + of + `}[1h]))`, "{{instance}}"}),
			stacked("Waited for Redis to know their limits", "reqps", "Alone: there was no answer within 5 ms, and the replica decided by itself.",
				query{rate("headrace_keys_shared_waits_total", of, "headrace_result"), "{{headrace_result}}"}),
		}},
		section{"Ledger", []Panel{
			lines("Requests taken", "reqps", "", query{`sum by (instance) (rate(headrace_ledger_records_total{` + of + `}[$__rate_interval]))`, "{{instance}}"}),
			lines("Written", "none", "1 or 0. While it cannot be, sums are in memory only.", query{`headrace_ledger_written{` + of + `}`, "{{instance}}"}),
			lines("Lost", "none", "In five minutes: requests of which the sums were kept and nothing else, and writes that failed.",
				query{`sum by (instance) (increase(headrace_ledger_dropped_total{` + of + `}[5m]))`, "{{instance}} requests"},
				query{`sum by (instance) (increase(headrace_ledger_write_failures_total{` + of + `}[5m]))`, "{{instance}} writes"},
				query{`sum by (instance) (increase(headrace_ledger_disbelieved_total{` + of + `}[5m]))`, "{{instance}} figures not believed"}),
			lines("Size", "bytes", "Of the file, as far as it is in use.", query{`headrace_ledger_size_bytes{` + of + `}`, "{{instance}}"}),
		}},
		section{"Config and telemetry", []Panel{
			lines("Reloads", "none", "In an hour.", query{`sum by (headrace_result) (increase(headrace_config_reloads_total{` + of + `}[1h]))`, "{{headrace_result}}"}),
			lines("Telemetry lost", "none", "Items in five minutes.", query{`sum by (headrace_signal, headrace_reason) (increase(headrace_telemetry_dropped_total{` + of + `}[5m]))`, "{{headrace_signal}} {{headrace_reason}}"}),
			lines("Exports that failed", "none", "In five minutes.", query{`sum by (headrace_signal) (increase(headrace_telemetry_export_failures_total{` + of + `}[5m]))`, "{{headrace_signal}}"}),
			lines("Counted as other", "none", "Records in an hour, of models and hosts beyond the first 1,000.", query{`sum by (instance) (increase(headrace_telemetry_overflow_total{` + of + `}[1h]))`, "{{instance}}"}),
			lines("Versions", "none", "", query{`count by (headrace_version) (headrace_build{` + of + `})`, "{{headrace_version}}"}),
		}},
	)
}
