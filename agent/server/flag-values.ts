import type { Flags } from "../config/flags.ts";
import { kubeletFields } from "../config/kubelet-config.ts";
import { type KubeletSettings, kubeletCommandFlags } from "../config/load-kubelet.ts";
import { type ProxySettings, proxyCommandFlags } from "../config/load-proxy.ts";
import { proxyFields } from "../config/proxy-config.ts";
import { type Table, type Values, valueAt } from "../config/schema.ts";
import { isObject } from "../lib/json.ts";

/** The kubelet's flags with the values in use, as /flagz shows them. Those that may hold secrets say `CLASSIFIED`. */
export function kubeletFlagValues(settings: KubeletSettings): Map<string, string> {
  return flagValues(kubeletCommandFlags, kubeletFields, settings);
}

/** As {@link kubeletFlagValues}, of the proxy. */
export function proxyFlagValues(settings: ProxySettings): Map<string, string> {
  return flagValues(proxyCommandFlags, proxyFields, settings);
}

/** @param fields the table whose values are in `config`; those of others are in `flags` */
function flagValues(
  known: Flags,
  fields: Table,
  { flags, config }: { readonly flags: Values; readonly config: Values },
): Map<string, string> {
  const values = new Map<string, string>();
  for (const { flag, table, path, field } of known.values()) {
    const from = table === fields ? config : flags;
    const value = valueAt(from, path);
    const text = value === undefined ? "" : flagText(field.kind.encode(value));
    values.set(flag, field.options.secret === true ? "CLASSIFIED" : text);
  }
  return values;
}

// As flags are written on a command line.
function flagText(value: unknown): string {
  if (Array.isArray(value)) return value.map(flagText).join(",");
  if (isObject(value)) {
    return Object.entries(value)
      .map(([name, one]) => `${name}=${flagText(one)}`)
      .join(",");
  }
  return typeof value === "string" ? value : JSON.stringify(value);
}
