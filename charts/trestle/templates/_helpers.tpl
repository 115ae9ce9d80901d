{{- define "trestle.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 40 | trimSuffix "-" -}}
{{- end -}}

{{- define "trestle.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 40 | trimSuffix "-" -}}
{{- else if contains (include "trestle.name" .) .Release.Name -}}
{{- .Release.Name | trunc 40 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name (include "trestle.name" .) | trunc 40 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{- define "trestle.selector" -}}
app.kubernetes.io/name: {{ include "trestle.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "trestle.labels" -}}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name (.Chart.Version | replace "+" "_") }}
{{ include "trestle.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- end -}}

{{/* What the replicas are selected by: never a hook, never the quickstart. */}}
{{- define "trestle.replicas" -}}
{{ include "trestle.selector" . }}
component: ws-manager-bridge
{{- end -}}

{{/* Seconds to wait before the hand-over; earlier versions cannot sleep without a shell. */}}
{{- define "trestle.delay" -}}
{{- if semverCompare ">=1.30.0-0" .Capabilities.KubeVersion.Version -}}
{{- .Values.shutdown.delaySeconds -}}
{{- else -}}
0
{{- end -}}
{{- end -}}

{{- define "trestle.image" -}}
{{- if .Values.image.digest -}}
{{ .Values.image.repository }}@{{ .Values.image.digest }}
{{- else -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end -}}
{{- end -}}

{{- define "trestle.serviceAccount" -}}
{{- if .Values.serviceAccount.create -}}
{{ .Values.serviceAccount.name | default (include "trestle.fullname" .) }}
{{- else -}}
{{ .Values.serviceAccount.name | default "default" }}
{{- end -}}
{{- end -}}

{{- define "trestle.podSecurity" -}}
runAsNonRoot: true
runAsUser: 65532
runAsGroup: 65532
fsGroup: 65532
seccompProfile: {type: RuntimeDefault}
{{- end -}}

{{- define "trestle.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end -}}

{{/* What is missing or contradicts itself, in words; the schema sees single values only. */}}
{{- define "trestle.validate" -}}
{{- $v := .Values -}}
{{- if $v.quickstart.enabled -}}
{{- if or $v.postgres.existingSecret $v.redis.existingSecret $v.redis.address $v.redis.sentinel.master $v.etcd.endpoints -}}
{{- fail "quickstart.enabled brings its own PostgreSQL, Redis and etcd: leave out postgres.existingSecret, redis and etcd.endpoints, or turn it off" -}}
{{- end -}}
{{- else -}}
{{- if not $v.postgres.existingSecret -}}
{{- fail "postgres.existingSecret is required: a Secret with the database's URL under the key \"url\" (or quickstart.enabled=true for a first look)" -}}
{{- end -}}
{{- if not (or $v.redis.existingSecret $v.redis.address $v.redis.sentinel.master) -}}
{{- fail "redis is required: redis.existingSecret with a URL, redis.address, or redis.sentinel.master" -}}
{{- end -}}
{{- if not $v.etcd.endpoints -}}
{{- fail "etcd.endpoints is required, as in [https://etcd-0.etcd:2379]" -}}
{{- end -}}
{{- end -}}
{{- if and $v.redis.sentinel.master (not $v.redis.sentinel.addresses) -}}
{{- fail "redis.sentinel.addresses is required with redis.sentinel.master" -}}
{{- end -}}
{{- if and $v.redis.sentinel.master $v.redis.address -}}
{{- fail "set one of redis.address and redis.sentinel.master" -}}
{{- end -}}
{{- if and $v.grpc.expose (not $v.grpc.tls.existingSecret) -}}
{{- fail "grpc.expose needs grpc.tls.existingSecret: whoever reaches the port may otherwise change everything" -}}
{{- end -}}
{{- if and $v.grpc.expose (not (or $v.grpc.tokens.existingSecret $v.grpc.roles)) -}}
{{- fail "grpc.expose needs grpc.tokens.existingSecret or grpc.roles: somebody must say who may call" -}}
{{- end -}}
{{- if and $v.grpc.roles (not $v.grpc.tls.existingSecret) -}}
{{- fail "grpc.roles needs grpc.tls.existingSecret: roles are those of names in certificates" -}}
{{- end -}}
{{- if and $v.autoscaling.enabled (gt (int $v.autoscaling.minReplicas) (int $v.autoscaling.maxReplicas)) -}}
{{- fail "autoscaling.minReplicas is above autoscaling.maxReplicas" -}}
{{- end -}}
{{- range $key := list "installation" "staticBridges" "shutdown" "etcd" "peer" "http" -}}
{{- if hasKey $v.config $key -}}
{{- $twin := dict "staticBridges" "staticClusters" "shutdown" "shutdown.drainSeconds" -}}
{{- if has $key (list "peer" "http") -}}
{{- fail (printf "config.%s is set by the chart" $key) -}}
{{- else if ne $key "staticBridges" -}}
{{- fail (printf "config.%s: set %s instead" $key (get $twin $key | default $key)) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* Where Redis is, unless the Secret says it. */}}
{{- define "trestle.redisConfig" -}}
{{- $r := .Values.redis -}}
{{- if .Values.quickstart.enabled -}}
address: {{ include "trestle.fullname" . }}-quickstart-redis:6379
{{- else if $r.sentinel.master -}}
url: {{ ternary "rediss" "redis" $r.tls.enabled }}://{{ first $r.sentinel.addresses }}?master_name={{ $r.sentinel.master | urlquery }}{{ range rest $r.sentinel.addresses }}&addr={{ . | urlquery }}{{ end }}
{{- else if and $r.address $r.tls.enabled -}}
url: rediss://{{ $r.address }}
{{- else if $r.address -}}
address: {{ $r.address }}
{{- end }}
{{- if and $r.username (or $r.address $r.sentinel.master) }}
username: {{ $r.username | quote }}
{{- end }}
{{- if $r.tls.existingSecret }}
tls:
  ca: /etc/trestle/tls/redis/ca.crt
  {{- if $r.tls.clientCertificate }}
  crt: /etc/trestle/tls/redis/tls.crt
  key: /etc/trestle/tls/redis/tls.key
  {{- end }}
{{- end }}
{{- end -}}

{{/* The configuration file. What the chart knows goes over what config says. */}}
{{- define "trestle.config" -}}
{{- include "trestle.validate" . -}}
{{- $v := .Values -}}
{{- $etcd := dict "endpoints" $v.etcd.endpoints "prefix" $v.etcd.prefix "leaseSeconds" $v.etcd.leaseSeconds -}}
{{- if $v.quickstart.enabled -}}
{{- $_ := set $etcd "endpoints" (list (printf "http://%s-quickstart-etcd:2379" (include "trestle.fullname" .))) -}}
{{- end -}}
{{- if $v.etcd.tls.existingSecret -}}
{{- $tls := dict "ca" "/etc/trestle/tls/etcd/ca.crt" -}}
{{- if $v.etcd.tls.clientCertificate -}}
{{- $_ := set $tls "crt" "/etc/trestle/tls/etcd/tls.crt" -}}
{{- $_ := set $tls "key" "/etc/trestle/tls/etcd/tls.key" -}}
{{- end -}}
{{- $_ := set $etcd "tls" $tls -}}
{{- end -}}
{{- $grpc := dict "host" (ternary "" "localhost" $v.grpc.expose) "port" $v.grpc.port -}}
{{- if $v.grpc.tls.existingSecret -}}
{{- $tls := dict "crt" "/etc/trestle/tls/grpc/tls.crt" "key" "/etc/trestle/tls/grpc/tls.key" -}}
{{- if $v.grpc.roles -}}
{{- $_ := set $tls "ca" "/etc/trestle/tls/grpc/ca.crt" -}}
{{- end -}}
{{- $_ := set $grpc "tls" $tls -}}
{{- end -}}
{{- if $v.grpc.tokens.existingSecret -}}
{{- $_ := set $grpc "tokenFile" (printf "/etc/trestle/tokens/%s" $v.grpc.tokens.key) -}}
{{- end -}}
{{- if $v.grpc.roles -}}
{{- $_ := set $grpc "roles" $v.grpc.roles -}}
{{- end -}}
{{- $bridges := get $v.config "staticBridges" | default list -}}
{{- range $v.staticClusters -}}
{{- $bridge := omit . "tlsSecret" -}}
{{- if get . "tlsSecret" -}}
{{- $dir := printf "/etc/trestle/clusters/%s" .name -}}
{{- $_ := set $bridge "tls" (dict "ca" (printf "%s/ca.crt" $dir) "crt" (printf "%s/tls.crt" $dir) "key" (printf "%s/tls.key" $dir)) -}}
{{- end -}}
{{- $bridges = append $bridges $bridge -}}
{{- end -}}
{{- $config := dict
  "installation" $v.installation
  "http" (dict "address" ":9500")
  "peer" (dict "listen" ":7070")
  "clusterService" (mergeOverwrite (deepCopy (get $v.config "clusterService" | default dict)) $grpc)
  "etcd" $etcd
  "shutdown" (dict "timeoutSeconds" $v.shutdown.drainSeconds)
  "migrations" (dict "atStart" (or (not $v.migrations.job) $v.quickstart.enabled))
-}}
{{- if $bridges -}}
{{- $_ := set $config "staticBridges" $bridges -}}
{{- end -}}
{{- $redis := mergeOverwrite (deepCopy (get $v.config "redis" | default dict)) (include "trestle.redisConfig" . | fromYaml) -}}
{{- if $redis -}}
{{- $_ := set $config "redis" $redis -}}
{{- end -}}
{{- toYaml (merge $config (omit $v.config "clusterService" "redis" "staticBridges" "migrations")) -}}
{{- end -}}

{{- define "trestle.postgresEnv" -}}
- name: TRESTLE_POSTGRES_URL
  valueFrom:
    secretKeyRef:
      {{- if .Values.quickstart.enabled }}
      name: {{ include "trestle.fullname" . }}-quickstart
      key: url
      {{- else }}
      name: {{ .Values.postgres.existingSecret }}
      key: {{ .Values.postgres.urlKey }}
      {{- end }}
{{- end -}}

{{- define "trestle.redisEnv" -}}
{{- $r := .Values.redis -}}
{{- if and $r.existingSecret (or $r.address $r.sentinel.master) -}}
- name: REDIS_PASSWORD
  valueFrom: {secretKeyRef: {name: {{ $r.existingSecret }}, key: {{ $r.passwordKey }}}}
{{- else if $r.existingSecret -}}
- name: TRESTLE_REDIS_URL
  valueFrom: {secretKeyRef: {name: {{ $r.existingSecret }}, key: {{ $r.urlKey }}}}
{{- end -}}
{{- end -}}

{{/* Secrets as volumes: one list of names and places. */}}
{{- define "trestle.secretMounts" -}}
{{- $v := .Values -}}
{{- $all := list -}}
{{- with $v.postgres.tls.existingSecret }}{{ $all = append $all (dict "name" "postgres-tls" "secret" . "path" "/etc/trestle/tls/postgres") }}{{ end -}}
{{- with $v.redis.tls.existingSecret }}{{ $all = append $all (dict "name" "redis-tls" "secret" . "path" "/etc/trestle/tls/redis") }}{{ end -}}
{{- with $v.etcd.tls.existingSecret }}{{ $all = append $all (dict "name" "etcd-tls" "secret" . "path" "/etc/trestle/tls/etcd") }}{{ end -}}
{{- with $v.grpc.tls.existingSecret }}{{ $all = append $all (dict "name" "grpc-tls" "secret" . "path" "/etc/trestle/tls/grpc") }}{{ end -}}
{{- with $v.grpc.tokens.existingSecret }}{{ $all = append $all (dict "name" "grpc-tokens" "secret" . "path" "/etc/trestle/tokens") }}{{ end -}}
{{- range $i, $c := $v.staticClusters -}}
{{- if get $c "tlsSecret" }}{{ $all = append $all (dict "name" (printf "cluster-%d" $i) "secret" $c.tlsSecret "path" (printf "/etc/trestle/clusters/%s" $c.name)) }}{{ end -}}
{{- end -}}
{{- toYaml $all -}}
{{- end -}}
