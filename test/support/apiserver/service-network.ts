import type { Service } from "../../../agent/kube/types.ts";
import { type FieldError, invalidValue } from "./status.ts";

// --service-node-port-range of the API server.
const nodePortMin = 30_000;
const nodePortMax = 32_767;

/** Hands out cluster IPs of one IPv4 range and node ports. */
export class ServiceNetwork {
  readonly cidr: string;
  readonly #base: number;
  readonly #size: number;
  readonly #addresses = new Set<string>();
  readonly #ports = new Set<string>();
  #nextAddress = 2;
  #nextPort = nodePortMin;

  constructor(cidr: string) {
    this.cidr = cidr;
    const [address = "", bits = ""] = cidr.split("/");
    this.#size = 2 ** (32 - Number(bits));
    this.#base = Math.floor(toNumber(address) / this.#size) * this.#size;
  }

  /** The n-th address of the range; the first is the `kubernetes` service's. */
  address(n: number): string {
    const value = this.#base + n;
    return [24, 16, 8, 0].map((shift) => Math.floor(value / 2 ** shift) % 256).join(".");
  }

  /** Gives a new service its addresses and ports, writing them into `service`, or says what it cannot have. */
  allocate(service: Service): FieldError[] {
    const spec = service.spec;
    if (spec === undefined || spec.type === "ExternalName") return [];
    const errors: FieldError[] = [];
    if (spec.clusterIP === "None") {
      spec.clusterIPs = ["None"];
    } else {
      const wanted = spec.clusterIP;
      if (wanted === undefined || wanted === "") {
        spec.clusterIP = this.#freeAddress();
      } else if (!this.#contains(wanted)) {
        const why = `failed to allocate IP ${wanted}: the provided IP (${wanted}) is not in the valid range. The range of valid IPs is ${this.cidr}`;
        return [invalidValue("spec.clusterIPs", [wanted], why)];
      } else if (this.#addresses.has(wanted)) {
        return [
          invalidValue(
            "spec.clusterIPs",
            [wanted],
            `failed to allocate IP ${wanted}: provided IP is already allocated`,
          ),
        ];
      }
      const address = spec.clusterIP ?? "";
      this.#addresses.add(address);
      spec.clusterIPs = [address];
    }
    errors.push(...this.allocatePorts(service));
    if (errors.length > 0) this.release(service);
    return errors;
  }

  /** Gives ports that need a node port one. Ports that have one keep it; `old` is the service before an update. */
  allocatePorts(service: Service, old?: Service): FieldError[] {
    const spec = service.spec;
    if (spec === undefined) return [];
    const owned = new Set((old?.spec?.ports ?? []).map((p) => `${p.protocol ?? "TCP"}/${p.nodePort}`));
    const needsPorts = spec.type === "NodePort" || spec.type === "LoadBalancer";
    const errors: FieldError[] = [];
    for (const [i, port] of (spec.ports ?? []).entries()) {
      if (!needsPorts) {
        delete port.nodePort;
        continue;
      }
      const protocol = port.protocol ?? "TCP";
      const field = `spec.ports[${i}].nodePort`;
      if (port.nodePort === undefined || port.nodePort === 0) {
        port.nodePort = this.#freePort(protocol);
      } else if (port.nodePort < nodePortMin || port.nodePort > nodePortMax) {
        const why = `provided port is not in the valid range. The range of valid ports is ${nodePortMin}-${nodePortMax}`;
        errors.push(invalidValue(field, port.nodePort, why));
        continue;
      } else if (this.#ports.has(`${protocol}/${port.nodePort}`) && !owned.has(`${protocol}/${port.nodePort}`)) {
        errors.push(invalidValue(field, port.nodePort, "provided port is already allocated"));
        continue;
      }
      this.#ports.add(`${protocol}/${port.nodePort}`);
    }
    if (needsPorts && spec.externalTrafficPolicy === "Local" && spec.type === "LoadBalancer") {
      spec.healthCheckNodePort ??= this.#freePort("TCP");
    }
    return errors;
  }

  /** Takes back what `service` has. With `kept`, only what that one does not have. */
  release(service: Service, kept?: Service): void {
    const keptPorts = new Set((kept?.spec?.ports ?? []).map((p) => `${p.protocol ?? "TCP"}/${p.nodePort}`));
    for (const port of service.spec?.ports ?? []) {
      const id = `${port.protocol ?? "TCP"}/${port.nodePort}`;
      if (!keptPorts.has(id)) this.#ports.delete(id);
    }
    const address = service.spec?.clusterIP ?? "";
    if (address !== kept?.spec?.clusterIP) this.#addresses.delete(address);
  }

  #contains(address: string): boolean {
    const offset = toNumber(address) - this.#base;
    return offset > 0 && offset < this.#size - 1;
  }

  #freeAddress(): string {
    for (let tried = 0; tried < this.#size; tried++) {
      const n = this.#nextAddress;
      this.#nextAddress = n + 1 >= this.#size - 1 ? 2 : n + 1;
      const address = this.address(n);
      if (!this.#addresses.has(address)) return address;
    }
    throw new Error(`no free address in ${this.cidr}`);
  }

  #freePort(protocol: string): number {
    for (let tried = nodePortMin; tried <= nodePortMax; tried++) {
      const port = this.#nextPort;
      this.#nextPort = port >= nodePortMax ? nodePortMin : port + 1;
      if (this.#ports.has(`${protocol}/${port}`)) continue;
      this.#ports.add(`${protocol}/${port}`);
      return port;
    }
    throw new Error("no free node port");
  }
}

function toNumber(address: string): number {
  return address.split(".").reduce((value, part) => value * 256 + Number(part), 0);
}

/** Defaults of a service's spec, apart from what is allocated. Changes `service`. */
export function applyServiceDefaults(service: Service): void {
  const spec = (service.spec ??= {});
  spec.type ??= "ClusterIP";
  spec.sessionAffinity ??= "None";
  if (spec.sessionAffinity === "ClientIP") {
    spec.sessionAffinityConfig ??= {};
    spec.sessionAffinityConfig.clientIP ??= {};
    spec.sessionAffinityConfig.clientIP.timeoutSeconds ??= 10_800;
  } else {
    delete spec.sessionAffinityConfig;
  }
  for (const port of spec.ports ?? []) {
    port.protocol ??= "TCP";
    if (port.targetPort === undefined || port.targetPort === 0 || port.targetPort === "") port.targetPort = port.port;
  }
  const isExternal = spec.type === "NodePort" || spec.type === "LoadBalancer";
  if (isExternal) {
    spec.externalTrafficPolicy ??= "Cluster";
  } else if ((spec.externalIPs ?? []).length > 0) {
    spec.externalTrafficPolicy ??= "Cluster";
  } else {
    delete spec.externalTrafficPolicy;
  }
  if (spec.type === "ExternalName") return;
  spec.internalTrafficPolicy ??= "Cluster";
  spec.ipFamilies ??= ["IPv4"];
  spec.ipFamilyPolicy ??= "SingleStack";
}
