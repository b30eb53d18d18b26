import { base32Hash } from "../hash.ts";
import type { ServicePort } from "../model.ts";

// kube-proxy's names: the chains and sets that belong to one service port or endpoint are recognised by the slash in them.

// The kernel takes 255 characters; what stands before the base needs some of them.
const baseLengthMax = 240;
const cutMark = "...";
const hashLength = 8;

/** The part that the names of all chains of a service port share, `ULMVA6XW-ns1/svc1/tcp/p80`. */
export function portBase(
  serviceKey: string,
  { protocol, portName }: Pick<ServicePort, "protocol" | "portName">,
): string {
  return hashed(`${serviceKey}/${protocol}/${portName}`);
}

/** The same for one endpoint of the port, `5OJB2KTY-ns1/svc1/tcp/p80__10.180.0.1/80`. */
export function endpointBase(
  serviceKey: string,
  { protocol, portName }: Pick<ServicePort, "protocol" | "portName">,
  endpoint: { ip: string; port: number },
): string {
  const address = `${endpoint.ip.replaceAll(":", ".")}/${endpoint.port}`;
  return hashed(`${serviceKey}/${protocol}/${portName}__${address}`);
}

/** True for chains and sets that belong to one service or endpoint, also those that kube-proxy made. */
export function isServiceObject(name: string): boolean {
  return name.includes("/") || name.startsWith("affinity-") || /^(count|endpoints)-\d+$/.test(name);
}

function hashed(text: string): string {
  const name = `${base32Hash(text, hashLength)}-${text}`;
  return name.length <= baseLengthMax ? name : name.slice(0, baseLengthMax - cutMark.length) + cutMark;
}
