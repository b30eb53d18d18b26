import { type KubeletSettings, kubeletCommandFlags } from "../config/load-kubelet.ts";
import { isRecord, valueAt, type Values } from "../config/schema.ts";
import { kubeletFields } from "../config/kubelet-config.ts";

/** The kubelet's flags with the values in use, as /flagz shows them. Those that may hold secrets say `CLASSIFIED`. */
export function kubeletFlagValues({ flags, config }: KubeletSettings): Map<string, string> {
  const values = new Map<string, string>();
  for (const { flag, table, path, field } of kubeletCommandFlags.values()) {
    const from: Values = table === kubeletFields ? config : flags;
    const value = valueAt(from, path);
    const text = value === undefined ? "" : flagText(field.kind.encode(value));
    values.set(flag, field.options.secret === true ? "CLASSIFIED" : text);
  }
  return values;
}

// As flags are written on a command line.
function flagText(value: unknown): string {
  if (Array.isArray(value)) return value.map(flagText).join(",");
  if (isRecord(value)) {
    return Object.entries(value)
      .map(([name, one]) => `${name}=${flagText(one)}`)
      .join(",");
  }
  return typeof value === "string" ? value : JSON.stringify(value);
}
