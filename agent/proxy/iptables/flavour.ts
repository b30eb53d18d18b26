import type { Commands } from "../commands.ts";
import { commandNames, type Flavour } from "./exec.ts";

/** What one flavour's tables hold. */
export interface FlavourEvidence {
  readonly flavour: Flavour;
  /** The commands are there and work. */
  readonly isUsable: boolean;
  /** A kubelet left its mark: the chain KUBE-IPTABLES-HINT or KUBE-KUBELET-CANARY. */
  readonly hasHint: boolean;
  readonly rules: number;
}

/** Chains that a kubelet creates so that others can see which flavour the node uses. */
const hintRE = /^:KUBE-(IPTABLES-HINT|KUBELET-CANARY) /;
const saveTimeoutMs = 60_000;

/**
 * Which flavour the node already uses: the kubelet's mark decides, then where more rules are. Two users of different
 * flavours would each miss the other's rules. Pure.
 *
 * @returns undefined if nothing speaks for either: take what the machine calls `iptables`
 */
export function decideFlavour(evidence: readonly FlavourEvidence[]): Flavour | undefined {
  const usable = evidence.filter((one) => one.isUsable);
  const hinted = usable.filter((one) => one.hasHint);
  if (hinted.length === 1) return hinted[0]?.flavour;
  const [most, next] = [...usable].sort((a, b) => b.rules - a.rules);
  if (most === undefined || most.rules === (next?.rules ?? 0)) return undefined;
  return most.flavour;
}

/** Looks at the tables of both flavours. Changes nothing: saving creates no tables. */
export async function observeFlavours(commands: Commands, signal: AbortSignal): Promise<FlavourEvidence[]> {
  const found: FlavourEvidence[] = [];
  for (const flavour of ["nft", "legacy"] as const) {
    let hasHint = false;
    let rules = 0;
    const result = await commands.lines(commandNames("IPv4", flavour).save, [], {
      signal,
      timeoutMs: saveTimeoutMs,
      onLine: (line) => {
        if (hintRE.test(line)) hasHint = true;
        if (line.startsWith("-A ")) rules += 1;
      },
    });
    found.push({ flavour, isUsable: result.failure === undefined, hasHint, rules });
  }
  return found;
}
