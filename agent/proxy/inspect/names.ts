import type { Passed } from "./chain-walk.ts";

/** `namespace/name` of a service, with its port's name if that has one. */
export interface ServiceName {
  readonly key: string;
  readonly portName: string;
}

// Comments are kube-proxy's: `ns/name:port cluster IP`, `ns/name has no endpoints`, or the name alone.
const commentRE = /^([a-z0-9-]+\/[a-z0-9-]+)(?::([a-z0-9-]+))?(?: (.+))?$/;
// `service-ULMVA6XW-ns1/svc1/tcp/p80`
const nftChainRE = /^(?:service|local|external|firewall|endpoint)-[A-Z2-7]{8}-([^/]+\/[^/]+)\/[a-z]+\/([^/_]*)/;

/** The service that a rule's comment names, and what else it says. Pure. */
export function serviceOfComment(comment: string): (ServiceName & { readonly about: string }) | undefined {
  const [, key, portName = "", about = ""] = commentRE.exec(comment) ?? [];
  return key === undefined ? undefined : { key, portName, about };
}

/** The service that a chain of the nftables mode belongs to. Pure. */
export function serviceOfChain(chain: string): ServiceName | undefined {
  const [, key, portName = ""] = nftChainRE.exec(chain) ?? [];
  return key === undefined ? undefined : { key, portName };
}

/** `ns/name:port`. */
export function printable({ key, portName }: ServiceName): string {
  return portName === "" ? key : `${key}:${portName}`;
}

/** The service that a packet's way leads through, if rules or chains on it name one. Pure. */
export function serviceOn(way: readonly Passed[]): ServiceName | undefined {
  for (const { chain, rule, note } of way) {
    const noted = /\(([^()]+)\)$/.exec(note ?? "")?.[1];
    const found = serviceOfComment(noted ?? "") ?? serviceOfComment(rule?.comment ?? "") ?? serviceOfChain(chain);
    if (found !== undefined) return found;
  }
  return undefined;
}
