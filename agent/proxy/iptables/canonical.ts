// What iptables adds to rules when it lists them, though it is the default.
const defaults = new Set(["--rsource", "--reject-with icmp-port-unreachable", "--reject-with icmp6-port-unreachable"]);
const tokenRE = /"([^"]*)"|(\S+)/g;
// The kernel keeps probabilities as 31 bits; six digits tell 1/999 from 1/1000.
const probabilityDigits = 6;

/**
 * A form of a rule's arguments that is the same for the rule as we write it and as iptables-save lists it: options in one
 * order, host addresses without a length, no defaults. Rules that mean different things differ; for rules of kinds that
 * we do not write into services' chains, equal ones may differ, too. Pure.
 */
export function canonicalRule(rule: string): string {
  const options: string[] = [];
  let current = "";
  let isNegated = false;
  const finish = () => {
    current = xmark(current);
    // Modules are loaded for their options, which say the same; `--mask` is the list's own, all of the address.
    if (current !== "" && !current.startsWith("-m ") && !current.startsWith("--mask ") && !defaults.has(current)) {
      options.push(current);
    }
    current = "";
  };
  for (const [, quoted, plain] of rule.matchAll(tokenRE)) {
    if (plain === "!") {
      finish();
      isNegated = true;
    } else if (plain?.startsWith("-") === true && plain !== "->") {
      finish();
      current = isNegated ? `! ${plain}` : plain;
      isNegated = false;
    } else current = `${current} ${canonicalValue(current, quoted ?? plain ?? "")}`;
  }
  finish();
  return options.sort().join(" ");
}

function canonicalValue(option: string, value: string): string {
  if (option === "--probability") return Number(value).toFixed(probabilityDigits);
  if (option.endsWith("--mark")) return value.split("/").map(numberText).join("/");
  return /-[sd]$/.test(option) ? value.replace(/\/(32|128)$/, (whole) => (isHost(value, whole) ? "" : whole)) : value;
}

/** `/32` is a host in IPv4 only. */
function isHost(value: string, length: string): boolean {
  return value.includes(":") ? length === "/128" : length === "/32";
}

function numberText(value: string): string {
  return `0x${Number(value).toString(16)}`;
}

/** Setting and toggling bits of the mark are listed in one form. */
function xmark(option: string): string {
  const [verb, bits = ""] = option.split(" ");
  if (verb === "--or-mark") return `--set-xmark ${numberText(bits)}/${numberText(bits)}`;
  return verb === "--xor-mark" ? `--set-xmark ${numberText(bits)}/0x0` : option;
}
