import { isIP } from "node:net";
import { ConfigError } from "./problems.ts";
import { outputFormat, readWordArguments } from "./word-arguments.ts";

/** `nodelet rules`: what the kernel has for one service. */
export interface RulesCommand {
  kind: "rules";
  service: { namespace: string; name: string } | { address: string };
  output: "text" | "json";
}

/** `nodelet trace`: where a packet goes. */
export interface TraceCommand {
  kind: "trace";
  source: string;
  destination: string;
  port: number;
  protocol: "tcp" | "udp" | "sctp";
  /** undefined: found out. */
  inInterface: string | undefined;
  output: "text" | "json";
}

/** `nodelet rules --help` and `nodelet trace --help`. */
export const rulesHelp = `Reads the rules for services that the kernel of this machine has now. Needs root, and neither an agent that runs
nor an API server.

Usage:
  nodelet rules [NAMESPACE/]SERVICE   the way of its packets: addresses, chains, endpoints, counters
  nodelet rules ADDRESS               the same for the service that has this address
  nodelet trace SOURCE ADDRESS:PORT   where a packet goes, which rules it meets, and what each endpoint's chance is

Flags:
  -n, --namespace string      the service's namespace (default "default")
      --proto string          nodelet trace: tcp, udp or sctp (default tcp)
      --in-interface string   nodelet trace: by which it comes in (default: the way to SOURCE; none if SOURCE is local)
  -o, --output string         text or json (default text)
  -h, --help                  this text

IPv6 addresses with a port are written [ADDRESS]:PORT. The exit code is 0 if there is an answer, 1 if no rule names the
service or the rules cannot be read.
`;

const protocols = ["tcp", "udp", "sctp"] as const;
const rulesUsage = "say which service: nodelet rules NAMESPACE/SERVICE, or one of its addresses";
const traceUsage = "say from where to where: nodelet trace SOURCE ADDRESS:PORT, such as 10.244.0.7 10.96.0.10:53";

const flags = {
  namespace: { type: "string", short: "n" },
  output: { type: "string", short: "o" },
  proto: { type: "string" },
  "in-interface": { type: "string" },
  help: { type: "boolean", short: "h" },
} as const;

/**
 * Reads the arguments of `nodelet rules` and `nodelet trace`.
 *
 * @param args arguments after the word
 * @returns "help" if that is what they ask for
 * @throws ConfigError
 */
export function parseRulesCommand(
  word: "rules" | "trace",
  args: readonly string[],
): RulesCommand | TraceCommand | "help" {
  const { values, positionals } = readWordArguments(word, args, flags);
  if (values.help === true) return "help";
  const output = outputFormat(values.output);
  const { proto, namespace, "in-interface": inInterface } = values;
  if (word === "rules") {
    for (const [flag, value] of Object.entries({ proto, "in-interface": inInterface })) {
      if (value !== undefined) throw new ConfigError([`--${flag} is for nodelet trace`]);
    }
    return { kind: "rules", service: serviceOf(positionals, namespace), output };
  }
  if (namespace !== undefined) throw new ConfigError(["--namespace is for nodelet rules"]);
  const protocol = protocols.find((one) => one === (proto ?? "tcp").toLowerCase());
  if (protocol === undefined) throw new ConfigError([`--proto: must be tcp, udp or sctp, not ${proto}`]);
  return { kind: "trace", ...wayOf(positionals), protocol, inInterface, output };
}

// `svc ns/name`, `ns/name`, `name -n ns`, `svc/name`, or an address.
function serviceOf(positionals: readonly string[], given: string | undefined): RulesCommand["service"] {
  const kinds = ["service", "services", "svc"];
  const isKindSaid = kinds.includes(positionals[0] ?? "");
  const words = isKindSaid ? positionals.slice(1) : positionals;
  const [word = ""] = words;
  const parts = word.split("/");
  if (!isKindSaid && parts.length > 1 && kinds.includes(parts[0] ?? "")) parts.shift();
  const [left = "", right, ...more] = parts;
  if (words.length !== 1 || more.length > 0) throw new ConfigError([rulesUsage]);
  if (right === undefined && isIP(left) !== 0) return { address: left };
  const name = right ?? left;
  const namespace = right === undefined ? (given ?? "default") : left;
  if (name === "" || namespace === "") throw new ConfigError([rulesUsage]);
  if (given !== undefined && given !== namespace) {
    throw new ConfigError([`--namespace ${given} and the service's ${word} do not agree`]);
  }
  return { namespace, name };
}

function wayOf(positionals: readonly string[]): Pick<TraceCommand, "source" | "destination" | "port"> {
  const [source = "", to = "", ...more] = positionals;
  if (source === "" || to === "" || more.length > 0) throw new ConfigError([traceUsage]);
  if (isIP(source) === 0) throw new ConfigError([`the source ${source} is no IP address: ${traceUsage}`]);
  const found = /^\[(.+)\]:(\d+)$/.exec(to) ?? /^([^:]+):(\d+)$/.exec(to);
  const [, destination = "", number = ""] = found ?? [];
  if (isIP(destination) === 0) {
    const advice = isIP(to) === 6 ? `write [${to}]:PORT` : "write ADDRESS:PORT";
    throw new ConfigError([`the destination ${to} is no address with a port: ${advice}`]);
  }
  const port = Number(number);
  if (port < 1 || port > 65_535) throw new ConfigError([`the port ${number} is not in 1-65535`]);
  if (isIP(source) !== isIP(destination)) {
    throw new ConfigError([`${source} and ${destination} are of different IP families`]);
  }
  return { source, destination, port };
}
