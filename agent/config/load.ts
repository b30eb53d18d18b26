import { stringify } from "yaml";
import { parseFlags } from "./flags.ts";
import { kubeletHelp, proxyHelp } from "./help.ts";
import { type ConfigHost, systemHost } from "./host.ts";
import { type InspectCommand, inspectHelp, parseInspectCommand } from "./inspect.ts";
import { parseRulesCommand, type RulesCommand, rulesHelp, type TraceCommand } from "./inspect-rules.ts";
import { type KubeletSettings, kubeletCommandFlags, loadKubeletSettings } from "./load-kubelet.ts";
import {
  loadProxySettings,
  proxyFlagValues,
  proxyCommandFlags,
  proxyDocument,
  type ProxySettings,
} from "./load-proxy.ts";

/** What the command line asks for. */
export type Command =
  | { kind: "version"; raw: boolean }
  | { kind: "help"; text: string }
  | InspectCommand
  | RulesCommand
  | TraceCommand
  /** The kubelet role, and the proxy role if `proxy` is there. */
  | { kind: "run"; kubelet: KubeletSettings; proxy?: ProxySettings; warnings: string[] }
  /** The proxy role alone; `cleanup`: only remove its rules; `initOnly`: only set up what needs privileges. */
  | { kind: "proxy"; proxy: ProxySettings; cleanup: boolean; initOnly: boolean; warnings: string[] }
  /** Write the proxy's effective configuration to `path`. */
  | { kind: "writeConfig"; path: string; text: string; warnings: string[] };

/**
 * Reads the command line and the files it names. Prints nothing, changes nothing.
 *
 * @param args arguments after the program's name
 * @throws ConfigError with lines for people; the process should print them and exit with 1
 */
export function parseCommandLine(args: readonly string[], host: ConfigHost = systemHost): Command {
  const [word, ...rest] = args;
  switch (word) {
    case "proxy":
      return parseProxyCommand(rest, host);
    case "explain":
    case "pods": {
      const command = parseInspectCommand(word, rest);
      return command === "help" ? { kind: "help", text: inspectHelp } : command;
    }
    case "rules":
    case "trace": {
      const command = parseRulesCommand(word, rest);
      return command === "help" ? { kind: "help", text: rulesHelp } : command;
    }
    default:
      return parseKubeletCommand(args, host);
  }
}

function parseKubeletCommand(args: readonly string[], host: ConfigHost): Command {
  const { given, help, version } = parseFlags(args, kubeletCommandFlags);
  if (help) return { kind: "help", text: kubeletHelp() };
  if (version !== false) return { kind: "version", raw: version === "raw" };
  const { settings: kubelet, warnings } = loadKubeletSettings(given, host);
  const { proxyConfig, kubeconfig, hostnameOverride } = kubelet.flags;
  if (proxyConfig === "") return { kind: "run", kubelet, warnings };

  const loaded = loadProxySettings(new Map(), proxyConfig, host);
  const proxy = loaded.settings;
  // One daemon is one node with one way to the API server, unless the proxy's file names its own.
  proxy.config.hostnameOverride ||= hostnameOverride;
  proxy.config.clientConnection.kubeconfig ||= kubeconfig;
  return { kind: "run", kubelet, proxy, warnings: [...warnings, ...loaded.warnings] };
}

function parseProxyCommand(args: readonly string[], host: ConfigHost): Command {
  const { given, help, version } = parseFlags(args, proxyCommandFlags);
  if (help) return { kind: "help", text: proxyHelp() };
  if (version !== false) return { kind: "version", raw: version === "raw" };
  const { config: file, cleanup, initOnly, writeConfigTo: path } = proxyFlagValues(given);
  const { settings: proxy, warnings } = loadProxySettings(given, file, host, cleanup);
  if (path !== "") return { kind: "writeConfig", path, text: stringify(proxyDocument(proxy.config)), warnings };
  return { kind: "proxy", proxy, cleanup, initOnly, warnings };
}
