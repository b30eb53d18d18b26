import { isIPv6 } from "node:net";
import type { Service } from "../kube/types.ts";

/** The services a pod may be told about, as the agent's store has them. */
export interface ServiceLookup {
  readonly hasSynced: boolean;
  get(key: { namespace: string; name: string }): Service | undefined;
  inNamespace(namespace: string): Iterable<Service>;
}

// The API server's own Service, which every pod learns about.
const masterService = { namespace: "default", name: "kubernetes" };

/**
 * The variables that tell a container where services are: those of `default/kubernetes` always, those of the pod's own
 * namespace if `enableServiceLinks`. Headless services have none. Sorted by service name; where two services make the
 * same variable the later one wins, and a service `kubernetes` of the pod's namespace beats the default one.
 */
export function serviceEnv(
  services: ServiceLookup,
  namespace: string,
  enableServiceLinks: boolean,
): Map<string, string> {
  const chosen = new Map<string, Service>();
  const offer = (service: Service | undefined) => {
    if (service !== undefined && hasClusterIP(service)) chosen.set(service.metadata.name, service);
  };
  offer(services.get(masterService));
  if (enableServiceLinks) {
    for (const service of services.inNamespace(namespace)) offer(service);
  }
  const env = new Map<string, string>();
  const names = [...chosen.keys()].sort();
  for (const name of names) {
    const service = chosen.get(name);
    if (service !== undefined) addService(env, service);
  }
  return env;
}

function hasClusterIP(service: Service): boolean {
  const ip = service.spec?.clusterIP;
  return ip !== undefined && ip !== "" && ip !== "None";
}

function addService(env: Map<string, string>, service: Service): void {
  const { clusterIP = "", ports = [] } = service.spec ?? {};
  const prefix = variableName(service.metadata.name);
  const host = isIPv6(clusterIP) ? `[${clusterIP}]` : clusterIP;
  const [first] = ports;
  env.set(`${prefix}_SERVICE_HOST`, clusterIP);
  if (first === undefined) return;
  env.set(`${prefix}_SERVICE_PORT`, String(first.port));
  for (const { name, port } of ports) {
    if (name !== undefined && name !== "") env.set(`${prefix}_SERVICE_PORT_${variableName(name)}`, String(port));
  }
  for (const { protocol = "TCP", port } of ports) {
    const url = `${protocol.toLowerCase()}://${host}:${port}`;
    if (!env.has(`${prefix}_PORT`)) env.set(`${prefix}_PORT`, url);
    const portPrefix = `${prefix}_PORT_${port}_${protocol}`;
    env.set(portPrefix, url);
    env.set(`${portPrefix}_PROTO`, protocol.toLowerCase());
    env.set(`${portPrefix}_PORT`, String(port));
    env.set(`${portPrefix}_ADDR`, clusterIP);
  }
}

function variableName(name: string): string {
  return name.toUpperCase().replaceAll("-", "_");
}
