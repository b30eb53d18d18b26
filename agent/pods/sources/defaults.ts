import type {
  Container,
  LifecycleHandler,
  Pod,
  PodSpec,
  Probe,
  ResourceRequirements,
  Volume,
} from "../../kube/types.ts";

import { resizable } from "../resize/allocation.ts";

// 0644: what the API gives files of volumes that are written by the node.
const fileModeDefault = 0o644;
const graceSecondsDefault = 30;

/** The pod with everything filled in that the API server would have filled in. Pure. */
export function withPodDefaults(pod: Pod): Pod {
  const { spec } = pod;
  const ofContainer = (container: Container) => withContainerDefaults(container, spec);
  return {
    ...pod,
    spec: {
      restartPolicy: "Always",
      terminationGracePeriodSeconds: graceSecondsDefault,
      dnsPolicy: "ClusterFirst",
      schedulerName: "default-scheduler",
      enableServiceLinks: true,
      securityContext: {},
      ...spec,
      ...(spec.resources === undefined ? {} : { resources: withRequests(spec.resources) }),
      ...(spec.volumes === undefined ? {} : { volumes: spec.volumes.map(withVolumeDefaults) }),
      ...(spec.initContainers === undefined ? {} : { initContainers: spec.initContainers.map(ofContainer) }),
      containers: spec.containers.map(ofContainer),
    },
  };
}

function withContainerDefaults(container: Container, { hostNetwork }: PodSpec): Container {
  const { ports, env, lifecycle, livenessProbe, readinessProbe, startupProbe } = container;
  return {
    terminationMessagePath: "/dev/termination-log",
    terminationMessagePolicy: "File",
    imagePullPolicy: pullPolicyOf(container.image ?? ""),
    ...container,
    resources: withRequests(container.resources ?? {}),
    ...resizePolicyOf(container),
    ...(ports === undefined
      ? {}
      : {
          ports: ports.map((port) => ({
            protocol: "TCP" as const,
            // On the host's network, the container's port is the host's.
            ...(hostNetwork === true ? { hostPort: port.containerPort } : {}),
            ...port,
          })),
        }),
    ...(env === undefined
      ? {}
      : {
          env: env.map((variable) =>
            variable.valueFrom === undefined
              ? variable
              : { ...variable, valueFrom: withFieldDefaults(variable.valueFrom) },
          ),
        }),
    ...(livenessProbe === undefined ? {} : { livenessProbe: withProbeDefaults(livenessProbe) }),
    ...(readinessProbe === undefined ? {} : { readinessProbe: withProbeDefaults(readinessProbe) }),
    ...(startupProbe === undefined ? {} : { startupProbe: withProbeDefaults(startupProbe) }),
    ...(lifecycle === undefined
      ? {}
      : {
          lifecycle: {
            ...lifecycle,
            ...(lifecycle.postStart === undefined ? {} : { postStart: withHandlerDefaults(lifecycle.postStart) }),
            ...(lifecycle.preStop === undefined ? {} : { preStop: withHandlerDefaults(lifecycle.preStop) }),
          },
        }),
  };
}

// What a container asks for of cpu and memory changes without a restart, unless it says otherwise.
function resizePolicyOf({ resources = {}, resizePolicy = [] }: Container): Pick<Container, "resizePolicy"> {
  const asked = { ...resources.limits, ...resources.requests };
  const missing = resizable.filter(
    (name) => asked[name] !== undefined && !resizePolicy.some(({ resourceName }) => resourceName === name),
  );
  if (missing.length === 0) return {};
  const defaults = missing.map((resourceName) => ({ resourceName, restartPolicy: "NotRequired" as const }));
  return { resizePolicy: [...resizePolicy, ...defaults] };
}

/** Always for `latest` or no tag, IfNotPresent for another tag or a digest. */
function pullPolicyOf(image: string): "Always" | "IfNotPresent" {
  if (image.includes("@")) return "IfNotPresent";
  const tag = /:([^:/]+)$/.exec(image)?.[1];
  return tag === undefined || tag === "latest" ? "Always" : "IfNotPresent";
}

// What is limited and not requested is requested up to its limit.
function withRequests(resources: ResourceRequirements): ResourceRequirements {
  const { limits, requests } = resources;
  return limits === undefined ? resources : { ...resources, requests: { ...limits, ...requests } };
}

function withProbeDefaults(probe: Probe): Probe {
  return {
    timeoutSeconds: 1,
    periodSeconds: 10,
    successThreshold: 1,
    failureThreshold: 3,
    ...withHandlerDefaults(probe),
    ...(probe.grpc === undefined ? {} : { grpc: { service: "", ...probe.grpc } }),
  };
}

function withHandlerDefaults<T extends Pick<LifecycleHandler, "httpGet">>(handler: T): T {
  if (handler.httpGet === undefined) return handler;
  return { ...handler, httpGet: { path: "/", scheme: "HTTP", ...handler.httpGet } };
}

type FieldSource = { fieldRef?: { apiVersion?: string; fieldPath: string } };

function withFieldDefaults<T extends FieldSource>(source: T): T {
  return source.fieldRef === undefined ? source : { ...source, fieldRef: { apiVersion: "v1", ...source.fieldRef } };
}

function withVolumeDefaults(volume: Volume): Volume {
  const { hostPath, downwardAPI, projected } = volume;
  const hasSource = Object.keys(volume).some((key) => key !== "name" && volume[key] !== undefined);
  const items = (list: NonNullable<Volume["downwardAPI"]>["items"]) =>
    list === undefined ? {} : { items: list.map(withFieldDefaults) };
  return {
    ...volume,
    ...(hasSource ? {} : { emptyDir: {} }),
    ...(hostPath === undefined ? {} : { hostPath: { type: "", ...hostPath } }),
    ...(downwardAPI === undefined
      ? {}
      : { downwardAPI: { defaultMode: fileModeDefault, ...downwardAPI, ...items(downwardAPI.items) } }),
    ...(projected === undefined
      ? {}
      : {
          projected: {
            defaultMode: fileModeDefault,
            ...projected,
            ...(projected.sources === undefined
              ? {}
              : {
                  sources: projected.sources.map((source) =>
                    source.downwardAPI === undefined
                      ? source
                      : { ...source, downwardAPI: { ...source.downwardAPI, ...items(source.downwardAPI.items) } },
                  ),
                }),
          },
        }),
  };
}
