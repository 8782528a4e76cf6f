{{/*
The values that hold, as JSON. From weakest to strongest: the defaults; the presets (profile, compatibility version, platform);
what the user gave by plain names; what the user gave with the prefix `cni.`.
*/}}
{{- define "istio-cni.values" -}}
{{- if .Values.defaults }}
{{- fail "values under `defaults` are not read: set them without it, `hub` instead of `defaults.hub`" }}
{{- end }}
{{- /* Through JSON and back: a copy, so that merging does not change what other templates see. */}}
{{- $all := .Values | toJson | fromJson }}
{{- $given := mustMergeOverwrite (omit $all "_internal_defaults_do_not_set" "cni") ($all.cni | default dict) }}
{{- $global := $given.global | default dict }}
{{- $values := $all._internal_defaults_do_not_set | default dict }}
{{- with coalesce $given.profile $global.profile }}
{{- $values = mustMergeOverwrite $values (include "istio-cni.preset" (dict "root" $ "kind" "profile" "name" .) | fromJson) }}
{{- end }}
{{- with $given.compatibilityVersion }}
{{- $values = mustMergeOverwrite $values (include "istio-cni.preset" (dict "root" $ "kind" "compatibility-version" "name" .) | fromJson) }}
{{- end }}
{{- with coalesce $given.platform $global.platform }}
{{- $values = mustMergeOverwrite $values (include "istio-cni.preset" (dict "root" $ "kind" "platform" "name" .) | fromJson) }}
{{- end }}
{{- include "istio-cni.switches" (dict "given" $given "defaults" $values) }}
{{- $values = mustMergeOverwrite $values $given }}
{{- include "istio-cni.check" $values }}
{{- toJson $values }}
{{- end -}}

{{/* Makes texts out of `true` and `false` what they say, where the default is one of the two. Takes given, which is changed, and defaults. */}}
{{- define "istio-cni.switches" -}}
{{- range $name, $default := .defaults }}
{{- $value := index $.given $name }}
{{- if and (kindIs "bool" $default) (kindIs "string" $value) }}
{{- $_ := set $.given $name (eq $value "true") }}
{{- else if and (kindIs "map" $default) (kindIs "map" $value) }}
{{- include "istio-cni.switches" (dict "given" $value "defaults" $default) }}
{{- end }}
{{- end }}
{{- end -}}

{{/* One preset file as JSON. Takes root, kind (the folder under files/) and name. */}}
{{- define "istio-cni.preset" -}}
{{- $text := .root.Files.Get (printf "files/%s/%v.yaml" .kind .name) }}
{{- if not $text }}
{{- $known := list }}
{{- range $path, $_ := .root.Files.Glob (printf "files/%s/*.yaml" .kind) }}
{{- $known = append $known (base $path | trimSuffix ".yaml") }}
{{- end }}
{{- fail (printf "unknown %s %q; there are: %s" (.kind | replace "-" " ") (toString .name) (join ", " $known)) }}
{{- end }}
{{- $text | fromYaml | toJson }}
{{- end -}}

{{/* What the schema cannot say, because it does not see the presets. Takes the values that hold; renders nothing. */}}
{{- define "istio-cni.check" -}}
{{- $surge := ((.updateStrategy | default dict).rollingUpdate | default dict).maxSurge | default 0 | toString }}
{{- if not (has $surge (list "0" "0%")) }}
{{- fail (printf "updateStrategy.rollingUpdate.maxSurge is %s: a second agent on a node waits for the end of the first, which a surge would wait for in turn; leave it out" $surge) }}
{{- end }}
{{- if and (eq (.agent.tenantsEnforcement | default "off") "on") (ne (.agent.policyEnforcement | default "off") "on") }}
{{- fail "agent.tenantsEnforcement needs agent.policyEnforcement beside it: tenants hand on to NetworkPolicies; set both to on" }}
{{- end }}
{{- if and (eq (.agent.usage | default "off") "on") (ne (.agent.tenantsEnforcement | default "off") "on") }}
{{- fail "agent.usage needs agent.tenantsEnforcement beside it: what is counted is the traffic of tenants' pods; set both to on" }}
{{- end }}
{{- if eq (int .agent.healthPort) (int .agent.metricsPort) }}
{{- fail (printf "agent.healthPort and agent.metricsPort are both %d: give them two ports" (int .agent.healthPort)) }}
{{- end }}
{{- if and .agent.strictStatus (not (include "istio-cni.hostNetwork" .)) }}
{{- fail "agent.strictStatus needs an agent on the node's network: on the pod network it would never start again after a reboot; set agent.hostNetwork" }}
{{- end }}
{{- end -}}
