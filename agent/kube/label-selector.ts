import { AgentError } from "../lib/errors.ts";
import type { LabelSelector } from "./types.ts";

/**
 * True if an object with these labels is selected. No selector selects nothing, an empty one everything. Pure.
 * Rejects an operator that there is not with code Invalid.
 */
export function matchesSelector(
  labels: Readonly<Record<string, string>> | undefined,
  selector: LabelSelector | null | undefined,
): boolean {
  if (selector === undefined || selector === null) return false;
  const { matchLabels = {}, matchExpressions = [] } = selector;
  const valueOf = (key: string) => (labels !== undefined && Object.hasOwn(labels, key) ? labels[key] : undefined);
  return (
    Object.entries(matchLabels).every(([key, value]) => valueOf(key) === value) &&
    matchExpressions.every(({ key, operator, values = [] }) => {
      const value = valueOf(key);
      switch (operator) {
        case "In":
          return value !== undefined && values.includes(value);
        case "NotIn":
          return value === undefined || !values.includes(value);
        case "Exists":
          return value !== undefined;
        case "DoesNotExist":
          return value === undefined;
        default:
          throw new AgentError("Invalid", `label selector: unknown operator "${operator}" for key "${key}"`);
      }
    })
  );
}
