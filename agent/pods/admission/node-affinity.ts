import type { Node, NodeSelectorRequirement, NodeSelectorTerm, Pod } from "../../kube/types.ts";

/** Whether one of these terms allows the node. */
export function matchesTerms(terms: readonly NodeSelectorTerm[], { metadata }: Pick<Node, "metadata">): boolean {
  return terms.some((term) => matchesTerm(term, metadata.labels ?? {}, metadata.name));
}

/** Whether the node is one that the pod's node selector and required node affinity allow. */
export function matchesNode({ spec }: Pod, node: Node): boolean {
  const labels = node.metadata.labels ?? {};
  if (Object.entries(spec.nodeSelector ?? {}).some(([key, value]) => labels[key] !== value)) return false;
  const required = spec.affinity?.nodeAffinity?.requiredDuringSchedulingIgnoredDuringExecution;
  if (required === undefined) return true;
  return matchesTerms(required.nodeSelectorTerms ?? [], node);
}

// All requirements of one term hold; a term without any matches nothing.
function matchesTerm(term: NodeSelectorTerm, labels: Readonly<Record<string, string>>, nodeName: string): boolean {
  const expressions = term.matchExpressions ?? [];
  const fields = term.matchFields ?? [];
  if (expressions.length + fields.length === 0) return false;
  return (
    expressions.every((requirement) => holds(requirement, labels[requirement.key])) &&
    fields.every((requirement) => requirement.key === "metadata.name" && holds(requirement, nodeName))
  );
}

function holds({ operator, values }: NodeSelectorRequirement, actual: string | undefined): boolean {
  const wanted = values ?? [];
  switch (operator) {
    case "In":
      return actual !== undefined && wanted.includes(actual);
    case "NotIn":
      return actual === undefined || !wanted.includes(actual);
    case "Exists":
      return actual !== undefined;
    case "DoesNotExist":
      return actual === undefined;
    case "Gt":
      return compare(actual, wanted, (a, b) => a > b);
    case "Lt":
      return compare(actual, wanted, (a, b) => a < b);
    default:
      return false;
  }
}

// Both sides are 64 bit integers, or nothing holds.
function compare(
  actual: string | undefined,
  wanted: readonly string[],
  test: (a: bigint, b: bigint) => boolean,
): boolean {
  const [bound] = wanted;
  const isInteger = (text: string | undefined): text is string => text !== undefined && /^[+-]?\d{1,19}$/.test(text);
  return wanted.length === 1 && isInteger(actual) && isInteger(bound) && test(BigInt(actual), BigInt(bound));
}
