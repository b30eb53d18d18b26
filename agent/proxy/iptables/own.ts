import { type Jump, ownChains, type Table, treeChains } from "./fixed.ts";
import { oldServicePrefix, servicePrefixes } from "./names.ts";

/** True if `rule`, as listed by iptables, is `jump`, no matter who made it. */
export function isJump(rule: string, jump: Jump): boolean {
  const comment = /--comment ("[^"]*"|\S+)/.exec(rule)?.[1]?.replaceAll('"', "") ?? "";
  const isNew = / --ctstate NEW\b/.test(rule);
  return rule.endsWith(` -j ${jump.to}`) && comment === jump.comment && isNew === (jump.match !== "");
}

/** True if `chain` is one of the many that services have, ours or a kube-proxy's, of whatever version; its fixed chains are none. */
export function isServiceChain(table: Table, chain: string): boolean {
  if (Object.values(treeChains).some((tree) => tree.table === table && tree.root === chain)) {
    return !ownChains[table].includes(chain);
  }
  if (table === "nat") {
    return [...servicePrefixes, oldServicePrefix].some((prefix) => chain.startsWith(prefix));
  }
  return Object.values(treeChains).some((tree) => tree.table === table && chain.startsWith(tree.inner));
}
