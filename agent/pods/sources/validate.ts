import { isLabelKey, isLabelValue } from "../../config/labels.ts";
import { parseQuantity } from "../../kube/quantity.ts";
import type {
  Container,
  LifecycleHandler,
  Pod,
  PodSpec,
  Probe,
  ResourceList,
  Volume,
  VolumeMount,
} from "../../kube/types.ts";

// RFC 1123 names as the API server checks them.
const label = /^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$/;
const subdomain = /^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$/;
const subdomainLengthMax = 253;
// A UID becomes the name of directories and cgroups.
const podUID = /^[A-Za-z0-9]([A-Za-z0-9-]{0,62})$/;
const portName = /^(?=.*[a-z])[a-z0-9]([-a-z0-9]{0,13}[a-z0-9])?$/;

// The API server's limit of all annotations of an object together.
const annotationBytesMax = 256 << 10;

type Check = string | undefined;

/**
 * What is wrong with a static pod, as the API server would see it; undefined: nothing. Pure. `pod` has its defaults, and
 * the types of its fields are right.
 */
export function podProblem(pod: Pod): Check {
  const { name, namespace = "", uid = "" } = pod.metadata;
  const isName = name.length <= subdomainLengthMax && subdomain.test(name);
  return (
    unless(isName, "metadata.name", `must be a DNS subdomain, together with the node's name, not "${name}"`) ??
    unless(label.test(namespace), "metadata.namespace", `must be a DNS label, not "${namespace}"`) ??
    unless(podUID.test(uid), "metadata.uid", `must be up to 63 letters, digits and "-", not "${uid}"`) ??
    labelsProblem(pod.metadata.labels ?? {}) ??
    annotationsProblem(pod.metadata.annotations ?? {}) ??
    specProblem(pod.spec)
  );
}

function labelsProblem(labels: Readonly<Record<string, string>>): Check {
  return first(
    Object.entries(labels),
    ([key, value]) =>
      keyProblem("metadata.labels", key, key) ??
      unless(
        isLabelValue(value),
        `metadata.labels.${key}`,
        'must be up to 63 letters, digits, "-", "_" and ".", with a letter or digit at both ends',
      ),
  );
}

function annotationsProblem(annotations: Readonly<Record<string, string>>): Check {
  const entries = Object.entries(annotations);
  const bytes = entries.reduce((sum, [key, value]) => sum + Buffer.byteLength(key) + Buffer.byteLength(value), 0);
  return (
    // As there, the case of their prefix does not matter.
    first(entries, ([key]) => keyProblem("metadata.annotations", key, key.toLowerCase())) ??
    unless(bytes <= annotationBytesMax, "metadata.annotations", `must not be more than ${annotationBytesMax >> 10} KiB`)
  );
}

/** @param checked the key as it counts */
function keyProblem(path: string, key: string, checked: string): Check {
  return unless(isLabelKey(checked), path, `must have keys such as "app" or "example.com/app", not "${key}"`);
}

function specProblem(spec: PodSpec): Check {
  const { initContainers = [], volumes = [], ephemeralContainers = [], terminationGracePeriodSeconds = 0 } = spec;
  const { activeDeadlineSeconds = 1 } = spec;
  return (
    oneOf("spec.restartPolicy", spec.restartPolicy, ["Always", "OnFailure", "Never"]) ??
    oneOf("spec.dnsPolicy", spec.dnsPolicy, ["ClusterFirst", "ClusterFirstWithHostNet", "Default", "None"]) ??
    unless(terminationGracePeriodSeconds >= 0, "spec.terminationGracePeriodSeconds", "must be 0 or more") ??
    unless(activeDeadlineSeconds >= 1, "spec.activeDeadlineSeconds", "must be 1 or more") ??
    unless(
      spec.dnsPolicy !== "None" || (spec.dnsConfig?.nameservers ?? []).length > 0,
      "spec.dnsConfig.nameservers",
      "must name a server when dnsPolicy is None",
    ) ??
    unless(ephemeralContainers.length === 0, "spec.ephemeralContainers", "must be empty in a static pod") ??
    unless(spec.containers.length > 0, "spec.containers", "must have at least one container") ??
    volumesProblem(volumes) ??
    resourcesProblem("spec.resources", spec.resources) ??
    containersProblem("spec.initContainers", initContainers, spec) ??
    containersProblem("spec.containers", spec.containers, spec) ??
    twice(
      "spec.containers",
      [...initContainers, ...spec.containers].map(({ name }) => name),
    )
  );
}

function volumesProblem(volumes: readonly Volume[]): Check {
  const names = volumes.map(({ name }) => name);
  return (
    first(volumes, (volume, i) => {
      const path = `spec.volumes[${i}]`;
      const sources = Object.keys(volume).filter((key) => key !== "name" && volume[key] !== undefined);
      return (
        unless(label.test(volume.name ?? ""), `${path}.name`, `must be a DNS label, not "${volume.name ?? ""}"`) ??
        unless(sources.length === 1, path, `must have one source, not ${sources.join(" and ")}`) ??
        unless(volume.hostPath?.path !== "", `${path}.hostPath.path`, "must be set") ??
        unless(!(volume.hostPath?.path ?? "").split("/").includes(".."), `${path}.hostPath.path`, 'must not hold ".."')
      );
    }) ?? twice("spec.volumes", names)
  );
}

function containersProblem(list: string, containers: readonly Container[], spec: PodSpec): Check {
  return first(containers, (container, i) => containerProblem(`${list}[${i}]`, container, spec));
}

function containerProblem(path: string, container: Container, spec: PodSpec): Check {
  const { name, image = "", ports = [], env = [], volumeMounts = [], lifecycle } = container;
  const at = (field: string) => `${path}.${field}`;
  return (
    unless(label.test(name ?? ""), at("name"), `must be a DNS label, not "${name ?? ""}"`) ??
    unless(image !== "" && image === image.trim(), at("image"), `must be the name of an image, not "${image}"`) ??
    oneOf(at("imagePullPolicy"), container.imagePullPolicy, ["Always", "IfNotPresent", "Never"]) ??
    oneOf(at("terminationMessagePolicy"), container.terminationMessagePolicy, ["File", "FallbackToLogsOnError"]) ??
    oneOf(at("restartPolicy"), container.restartPolicy, ["Always", "OnFailure", "Never"]) ??
    first(ports, (port, i) => portProblem(at(`ports[${i}]`), port)) ??
    twice(
      at("ports"),
      ports.flatMap((port) => (port.name === undefined ? [] : [port.name])),
    ) ??
    first(env, (variable, i) =>
      unless(
        (variable.name ?? "") !== "" && !variable.name.includes("="),
        at(`env[${i}].name`),
        'must be set, without "="',
      ),
    ) ??
    first(
      volumeMounts,
      (mount, i) =>
        unless(
          (spec.volumes ?? []).some((volume) => volume.name === mount.name),
          at(`volumeMounts[${i}].name`),
          `must be one of the pod's volumes, not "${mount.name}"`,
        ) ??
        unless((mount.mountPath ?? "") !== "", at(`volumeMounts[${i}].mountPath`), "must be set") ??
        subPathProblem(at(`volumeMounts[${i}]`), mount),
    ) ??
    twice(
      at("volumeMounts"),
      volumeMounts.map(({ mountPath }) => mountPath),
    ) ??
    first(["livenessProbe", "readinessProbe", "startupProbe"] as const, (kind) => {
      const probe = container[kind];
      return probe === undefined ? undefined : probeProblem(at(kind), kind, probe);
    }) ??
    first(["postStart", "preStop"] as const, (hook) => {
      const handler = lifecycle?.[hook];
      return handler === undefined ? undefined : handlerProblem(at(`lifecycle.${hook}`), handler);
    }) ??
    resourcesProblem(at("resources"), container.resources)
  );
}

function subPathProblem(path: string, { subPath = "", subPathExpr = "" }: VolumeMount): Check {
  const fields = [
    ["subPath", subPath],
    ["subPathExpr", subPathExpr],
  ] as const;
  return (
    unless(subPath === "" || subPathExpr === "", `${path}.subPathExpr`, "must not be set beside subPath") ??
    first(
      fields,
      ([field, value]) =>
        unless(!value.startsWith("/"), `${path}.${field}`, "must be relative to its volume") ??
        unless(!value.split("/").includes(".."), `${path}.${field}`, 'must not hold ".."'),
    )
  );
}

function portProblem(path: string, port: NonNullable<Container["ports"]>[number]): Check {
  const { name, containerPort, hostPort, protocol } = port;
  return (
    unless(isPort(containerPort), `${path}.containerPort`, `must be a port from 1 to 65535, not ${containerPort}`) ??
    unless(hostPort === undefined || hostPort === 0 || isPort(hostPort), `${path}.hostPort`, "must be a port") ??
    oneOf(`${path}.protocol`, protocol, ["TCP", "UDP", "SCTP"]) ??
    unless(
      name === undefined || portName.test(name),
      `${path}.name`,
      `must be up to 15 of a-z, 0-9 and "-", not "${name}"`,
    )
  );
}

function probeProblem(path: string, kind: string, probe: Probe): Check {
  const numbers = ["timeoutSeconds", "periodSeconds", "successThreshold", "failureThreshold"] as const;
  return (
    handlerProblem(path, probe) ??
    first(numbers, (field) => unless((probe[field] ?? 1) >= 1, `${path}.${field}`, "must be 1 or more")) ??
    unless((probe.initialDelaySeconds ?? 0) >= 0, `${path}.initialDelaySeconds`, "must be 0 or more") ??
    unless(
      kind === "readinessProbe" || (probe.successThreshold ?? 1) === 1,
      `${path}.successThreshold`,
      "must be 1 for liveness and startup probes",
    ) ??
    unless(
      kind !== "readinessProbe" || probe.terminationGracePeriodSeconds === undefined,
      `${path}.terminationGracePeriodSeconds`,
      "must not be set for readiness probes, which end no container",
    ) ??
    unless(
      (probe.terminationGracePeriodSeconds ?? 1) >= 1,
      `${path}.terminationGracePeriodSeconds`,
      "must be 1 or more",
    )
  );
}

const handlers = ["exec", "httpGet", "tcpSocket", "grpc", "sleep"];

function handlerProblem(path: string, handler: LifecycleHandler): Check {
  const own = Object.keys(handler).filter((key) => handlers.includes(key));
  const port = handler.httpGet?.port ?? handler.tcpSocket?.port;
  const isAsked = handler.httpGet !== undefined || handler.tcpSocket !== undefined;
  return (
    unless(own.length === 1, path, `must say one of ${handlers.join(", ")}`) ??
    unless(
      handler.exec === undefined || (handler.exec.command ?? []).length > 0,
      `${path}.exec.command`,
      "must be set",
    ) ??
    unless(
      !isAsked || (typeof port === "string" ? portName.test(port) : isPort(port)),
      `${path}.port`,
      "must be a port or a port's name",
    )
  );
}

function resourcesProblem(path: string, resources: Container["resources"]): Check {
  const { requests = {}, limits = {} } = resources ?? {};
  return (
    quantitiesProblem(`${path}.limits`, limits) ?? // first: they may be where the requests come from
    quantitiesProblem(`${path}.requests`, requests) ??
    first(Object.entries(requests), ([name, request]) => {
      const limit = limits[name];
      if (limit === undefined) return undefined;
      const isWithin = (parseQuantity(request) ?? 0n) <= (parseQuantity(limit) ?? 0n);
      return unless(isWithin, `${path}.requests.${name}`, `must not be more than its limit ${limit}`);
    })
  );
}

function quantitiesProblem(path: string, list: ResourceList): Check {
  return first(Object.entries(list), ([name, quantity]) => {
    const units = parseQuantity(quantity);
    return unless(units !== undefined && units >= 0n, `${path}.${name}`, `must be a quantity, not "${quantity}"`);
  });
}

function isPort(port: unknown): boolean {
  return typeof port === "number" && port >= 1 && port <= 65_535;
}

function oneOf(path: string, value: string | undefined, allowed: readonly string[]): Check {
  return unless(value === undefined || allowed.includes(value), path, `must be ${allowed.join(", ")}, not "${value}"`);
}

function twice(path: string, names: readonly string[]): Check {
  const again = names.find((name, i) => names.indexOf(name) < i);
  return unless(again === undefined, path, `must not have "${again}" twice`);
}

function unless(isGood: boolean, path: string, message: string): Check {
  return isGood ? undefined : `${path}: ${message}`;
}

function first<T>(items: readonly T[], problemOf: (item: T, i: number) => Check): Check {
  for (const [i, item] of items.entries()) {
    const problem = problemOf(item, i);
    if (problem !== undefined) return problem;
  }
  return undefined;
}
