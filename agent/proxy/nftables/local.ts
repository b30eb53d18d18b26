import type { Family } from "../ip.ts";
import { detectLocalPods } from "../local-pods.ts";
import type { DetectLocalOptions } from "../options.ts";
import { familyWords } from "./render.ts";

/** What matches packets of this node's pods, and of everybody else; undefined: cannot be told for the family. Pure. */
export function detectLocalMatch(
  options: DetectLocalOptions,
  family: Family,
): { match: string; notMatch: string } | undefined {
  const pods = detectLocalPods(options, family);
  if (pods === undefined) return undefined;
  const [what, value] =
    pods.kind === "source"
      ? [`${familyWords(family).ip} saddr`, pods.cidr]
      : // Quoted: a name may begin with what nft takes for a number or a keyword.
        ["iifname", `"${pods.name}${pods.isPrefix ? "*" : ""}"`];
  return { match: `${what} ${value}`, notMatch: `${what} != ${value}` };
}
