{{/* Whether a scope's objects are wanted: "true" or nothing. Takes values and scope (cluster or namespace). */}}
{{- define "istio-cni.wants" -}}
{{- if has .values.global.resourceScope (list "all" .scope) }}true{{ end }}
{{- end -}}

{{/* Labels of everything, pods too. Takes root. */}}
{{- define "istio-cni.commonLabels" -}}
app.kubernetes.io/name: istio-cni
app.kubernetes.io/instance: {{ .root.Release.Name | quote }}
app.kubernetes.io/managed-by: {{ .root.Release.Service | quote }}
app.kubernetes.io/part-of: istio
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version | replace "+" "_" | trunc 63 | trimSuffix "-" }}
{{- end -}}

{{/* Labels of every object. Not of pods: to the mesh a pod's revision is a wish for a sidecar. Takes root and values. */}}
{{- define "istio-cni.labels" -}}
{{ include "istio-cni.commonLabels" . }}
app: istio-cni
release: {{ .root.Release.Name | quote }}
istio.io/rev: {{ .values.revision | default "default" | quote }}
install.operator.istio.io/owning-resource: {{ .values.ownerName | default "unknown" | quote }}
operator.istio.io/component: Cni
{{- end -}}

{{/* Version of the agent, without the variant. Takes root and values. */}}
{{- define "istio-cni.tag" -}}
{{- coalesce .values.tag .values.global.tag .root.Chart.AppVersion }}
{{- end -}}

{{/* The container's image. Takes root and values. */}}
{{- define "istio-cni.image" -}}
{{- $image := .values.image | default "install-cni" }}
{{- if contains "/" $image }}
{{- $image }}
{{- else }}
{{- $variant := coalesce .values.variant .values.global.variant }}
{{- .values.hub | default .values.global.hub }}/{{ $image }}:{{ include "istio-cni.tag" . }}{{ with $variant }}-{{ . }}{{ end }}
{{- end }}
{{- end -}}

{{/* Whether the image is from one of the original's registries: "true" or nothing. Takes root and values. */}}
{{- define "istio-cni.originalImage" -}}
{{- if regexMatch "^(docker.io/)?istio/|^gcr.io/istio-|^registry.istio.io/" (include "istio-cni.image" .) }}true{{ end }}
{{- end -}}

{{/* Whether AppArmor is told by annotation: "true" or nothing. From 1.30 on Kubernetes has a field for it. Takes root and values. */}}
{{- define "istio-cni.appArmorAnnotation" -}}
{{- if and .values.useAppArmorAnnotation (semverCompare "<1.30-0" .root.Capabilities.KubeVersion.Version) }}true{{ end }}
{{- end -}}

{{/* Whether the agent enters pods' network namespaces: "true" or nothing. Takes the values. */}}
{{- define "istio-cni.enters" -}}
{{- $repairs := and .repair.enabled .repair.repairPods }}
{{- if or .ambient.enabled .agent.takePodsOutOfAmbient .verification.enabled $repairs (eq .agent.policyEnforcement "on") }}true{{ end }}
{{- end -}}

{{/* Whether the agent's pod uses the node's network: "true" or nothing. Takes the values. */}}
{{- define "istio-cni.hostNetwork" -}}
{{- if or .agent.hostNetwork (and .ambient.enabled .ambient.shareHostNetworkNamespace) }}true{{ end }}
{{- end -}}

{{/* Folder of manifests on the node; nothing when pods come from the API server. Takes the values. */}}
{{- define "istio-cni.manifests" -}}
{{- $source := .agent.podSource | default "kubernetes" }}
{{- if hasPrefix "manifests:" $source }}{{ trimPrefix "manifests:" $source }}{{ end }}
{{- end -}}

{{/* Resource requirements without entries that say nothing, as YAML. Takes the values. */}}
{{- define "istio-cni.resources" -}}
{{- $from := .resources | default .global.defaultResources | default dict }}
{{- $resources := dict }}
{{- range $kind := list "limits" "requests" }}
{{- $amounts := dict }}
{{- range $name, $amount := index $from $kind | default dict }}
{{- if $amount }}
{{- $_ := set $amounts $name $amount }}
{{- end }}
{{- end }}
{{- if $amounts }}
{{- $_ := set $resources $kind $amounts }}
{{- end }}
{{- end }}
{{- with $resources }}{{ toYaml . }}{{ end }}
{{- end -}}

{{/* What the ConfigMap holds: the agent's options as environment variables, as YAML. Takes root and values. */}}
{{- define "istio-cni.options" -}}
{{- $values := .values }}
{{- $options := dict
  "CURRENT_AGENT_VERSION" (include "istio-cni.tag" .)
  "CHAINED_CNI_PLUGIN" (toString $values.chained)
  "ISTIO_OWNED_CNI_CONFIG" (toString $values.istioOwnedCNIConfig)
  "EXCLUDE_NAMESPACES" (join "," $values.excludeNamespaces)
  "NATIVE_NFTABLES" (kindIs "invalid" $values.global.nativeNftables | ternary "auto" (toString $values.global.nativeNftables))
  "AMBIENT_ENABLED" (toString $values.ambient.enabled)
  "AMBIENT_ENABLEMENT_SELECTOR" (toYaml $values.ambient.enablementSelectors)
  "AMBIENT_DNS_CAPTURE" (toString $values.ambient.dnsCapture)
  "AMBIENT_IPV6" (toString $values.ambient.ipv6)
  "AMBIENT_RECONCILE_POD_RULES_ON_STARTUP" (toString $values.ambient.reconcileIptablesOnStartup)
  "ENABLE_AMBIENT_DETECTION_RETRY" (toString $values.ambient.enableAmbientDetectionRetry)
  "REPAIR_ENABLED" (toString $values.repair.enabled)
  "REPAIR_REPAIR_PODS" (toString $values.repair.repairPods)
  "REPAIR_DELETE_PODS" (toString $values.repair.deletePods)
  "REPAIR_LABEL_PODS" (toString $values.repair.labelPods)
  "REPAIR_INIT_CONTAINER_NAME" (toString $values.repair.initContainerName)
  "REPAIR_BROKEN_POD_LABEL_KEY" (toString $values.repair.brokenPodLabelKey)
  "REPAIR_BROKEN_POD_LABEL_VALUE" (toString $values.repair.brokenPodLabelValue)
}}
{{- /* The rest is left out while it says nothing: to the agent an empty variable is a value. */}}
{{- range $name, $value := dict
  "CNI_CONF_NAME" $values.cniConfFileName
  "ISTIO_OWNED_CNI_CONFIG_FILENAME" (ternary $values.istioOwnedCNIConfigFileName "" $values.istioOwnedCNIConfig)
  "FAILURE_POLICY" $values.agent.failurePolicy
  "CAPTURE" $values.agent.capture
  "ADD_TIMEOUT" $values.agent.addTimeout
  "DRAIN_TIMEOUT" $values.agent.drainTimeout
  "LIVE_UPDATES" $values.agent.liveUpdates
  "VERIFY_INTERVAL" $values.agent.verifyInterval
  "VERIFY_FULL_INTERVAL" $values.agent.verifyFullInterval
  "VERIFY_REPAIR" $values.agent.verifyRepair
  "HEALTH_CONFIG_INTERVAL" $values.agent.healthConfigInterval
  "HEALTH_CONNECTIVITY_INTERVAL" $values.agent.healthConnectivityInterval
  "HEALTH_DNS_SERVERS" (join "," $values.agent.healthDnsServers)
  "HEALTH_METRICS_SHORT_NAMES" $values.agent.healthMetricsShortNames
  "CONFLICT_RESOLUTION" $values.agent.conflictResolution
  "CONFLICTS_BLOCK_READY" $values.agent.conflictsBlockReady
  "POLICY_ENFORCEMENT" $values.agent.policyEnforcement
  "POLICY_POINT" $values.agent.policyPoint
  "POLICY_ESTABLISHED" $values.agent.policyEstablished
  "POLICY_EGRESS_TO_OWN_NODE" $values.agent.policyEgressToOwnNode
  "POLICY_UNPREPARED" $values.agent.policyUnprepared
  "POLICY_DENY" $values.agent.policyDeny
  "POLICY_HBONE" $values.agent.policyHbone
  "POLICY_POD_POINT_MAX" $values.agent.policyPodPointMax
  "AUDIT_LOG" $values.agent.auditLog
  "AUDIT_LOG_MAX_MB" $values.agent.auditLogMaxMb
  "AUDIT_LOG_MAX_AGE" $values.agent.auditLogMaxAge
  "AUDIT_LOG_FILES" $values.agent.auditLogFiles
  "AUDIT_LOG_KEEP" $values.agent.auditLogKeep
  "AUDIT_GID" $values.agent.auditGid
  "AUDIT_MASK" $values.agent.auditMask
  "AUDIT_WINDOW" $values.agent.auditWindow
  "AUDIT_NODE_RATE" $values.agent.auditNodeRate
  "TENANTS_ENFORCEMENT" $values.agent.tenantsEnforcement
  "USAGE" $values.agent.usage
  "FACTS_TIMEOUT" $values.agent.factsTimeout
  "KERNEL_NETWORK_RUNTIME_CLASSES" (join "," $values.agent.kernelNetworkRuntimeClasses)
  "RUNTIME_ANNOTATIONS" (ternary "false" "" (eq (toString $values.agent.runtimeAnnotations) "false"))
  "REPAIR_TRIGGER" (ternary "" $values.repair.trigger (eq ($values.repair.trigger | default "kernel") "kernel"))
  "STRICT_STATUS" $values.agent.strictStatus
  "POD_SOURCE" $values.agent.podSource
  "HEALTH_PORT" (ternary "" (int $values.agent.healthPort) (eq (int $values.agent.healthPort) 8000))
  "MONITORING_PORT" (ternary "" (int $values.agent.metricsPort) (eq (int $values.agent.metricsPort) 15014))
  "CNI_CACHE_DIR" (ternary "" $values.agent.cniCacheDir (eq $values.agent.cniCacheDir "/var/lib/cni"))
  "NODE_TAINT" (ternary "" $values.agent.nodeTaint (eq ($values.agent.nodeTaint | default "off") "off"))
  "NODE_TAINT_KEY" $values.agent.nodeTaintKey
  "STATE_DIR" (ternary "" $values.agent.stateDir (eq $values.agent.stateDir "/var/lib/istio-cni"))
}}
{{- if $value }}
{{- $_ := set $options $name (toString $value) }}
{{- end }}
{{- end }}
{{- range $name, $value := $values.env }}
{{- $_ := set $options $name (toString $value) }}
{{- end }}
{{- toYaml $options }}
{{- end -}}

{{- /* The directory of the audit file, where one is written. */}}
{{- define "istio-cni.auditDir" }}
{{- $values := .values }}
{{- if eq ($values.agent.policyEnforcement | default "off") "on" }}
{{- with regexFind "/[^,]*" ($values.agent.auditLog | default "") }}{{ dir . }}{{ end }}
{{- end }}
{{- end }}
