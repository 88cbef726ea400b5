{{- define "headrace.name" -}}
{{- ternary .Release.Name (printf "%s-%s" .Release.Name .Chart.Name) (contains .Chart.Name .Release.Name) | trunc 57 | trimSuffix "-" }}
{{- end }}

{{- define "headrace.selector" -}}
app.kubernetes.io/name: {{ .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "headrace.labels" -}}
{{ include "headrace.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end }}

{{- define "headrace.serviceAccount" -}}
{{- if .Values.serviceAccount.create }}{{ .Values.serviceAccount.name | default (include "headrace.name" .) }}{{ else }}{{ .Values.serviceAccount.name | default "default" }}{{ end }}
{{- end }}

{{- define "headrace.image" -}}
{{- if .Values.image.digest }}{{ .Values.image.repository }}@{{ .Values.image.digest }}{{ else }}{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}{{ end }}
{{- end }}

{{/* A Go duration of whole hours, minutes and seconds, in seconds. */}}
{{- define "headrace.seconds" -}}
{{- $s := 0 }}
{{- range regexFindAll "[0-9]+[hms]" . -1 }}
{{- $n := trimSuffix "h" . | trimSuffix "m" | trimSuffix "s" | int }}
{{- if hasSuffix "h" . }}{{ $n = mul $n 3600 }}{{ else if hasSuffix "m" . }}{{ $n = mul $n 60 }}{{ end }}
{{- $s = add $s $n }}
{{- end }}
{{- $s }}
{{- end }}

{{/* What would cut streams, lose state or let strangers in stops the installation. */}}
{{- define "headrace.check" -}}
{{- if and (not .Values.allowUnauthenticated) (not .Values.keys.admin.name) }}
{{- fail "callers are asked for no key: whoever reaches the Service spends your money. Name the Secret of an admin key (keys.admin.name), with which every caller needs a key; or keep strangers out (networkPolicy, a mesh, a proxy that asks), then set allowUnauthenticated=true" }}
{{- end }}
{{- if and .Values.allowUnauthenticated .Values.keys.admin.name }}
{{- fail "keys.admin.name has every caller asked for a key, allowUnauthenticated=true lets them in without: leave one of them out" }}
{{- end }}
{{- if and .Values.keys.admin.name (not .Values.redis.urlSecret.name) (not .Values.state.claim) }}
{{- fail "keys that are made while it runs would end with the pod: set redis.urlSecret.name, or state.claim" }}
{{- end }}
{{- $total := (.Values.config.timeouts | default dict).total | default "30m" }}
{{- if lt (int .Values.drain.longestStream) (int (include "headrace.seconds" $total)) }}
{{- fail (printf "drain.longestStream is %d s, but a request may take %s (config.timeouts.total): a pod that goes would cut it" (int .Values.drain.longestStream) $total) }}
{{- end }}
{{- if and (or .Values.autoscaling.enabled (gt (int .Values.replicas) 1)) (not .Values.redis.urlSecret.name) }}
{{- fail "several replicas share their state through Redis: set redis.urlSecret.name" }}
{{- end }}
{{- if and .Values.state.claim (or .Values.autoscaling.enabled (gt (int .Values.replicas) 1)) }}
{{- fail "state.claim is one pod's: set replicas=1 without autoscaling, or leave it empty" }}
{{- end }}
{{- if and .Values.autoscaling.enabled (gt (int .Values.autoscaling.min) (int .Values.autoscaling.max)) }}
{{- fail "autoscaling.min is above autoscaling.max" }}
{{- end }}
{{- end }}
